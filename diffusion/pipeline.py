"""PixCell as a diffusers pipeline: transformer, VAE and scheduler as components, opened without code from the folder.

Letters: B conditions, n images of each, L tokens of width D, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from diffusion.condition import Condition, as_condition
from diffusion.control import ControlledNetwork, maps_to_control
from diffusion.encoders.latents import LatentScale, from_uint8, to_uint8
from diffusion.encoders.vae_files import codec_folder, load_vae
from diffusion.formats import DEFAULT_SOLVER, DEFAULT_STEPS, LATENT_FACTOR, PIPELINE_INDEX, WINDOW
from diffusion.model.controlnet import (
    ControlNet,
    check_control_fits,
    controlnet_layout,
    load_controlnet,
    save_controlnet,
)
from diffusion.model.convert import load_weights, save_diffusers
from diffusion.model.diffusers_layout import diffusers_config
from diffusion.model.jumps import jump_targets
from diffusion.model.matching import load_into
from diffusion.model.pixart import PixArt
from diffusion.model.student import Student
from diffusion.pipeline_images import StartingImages, stack_pixels
from diffusion.sampling import build_scheduler, count_started_steps, denoise, prepare_scheduler
from diffusion.utils.assets import network_folder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import read_json

DEFAULT_GUIDANCE = 1.5
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")  # of from_pretrained, for what is downloaded


class PixCellTransformer2DModel(ModelMixin, ConfigMixin):
    """PixArt as a diffusers model: `network` is the PixArt itself, and folders have the released layout."""

    config_name = "config.json"

    def __init__(self, network: PixArt, prediction_type: str = "epsilon"):
        super().__init__()
        self.network, self.prediction_type = network, prediction_type
        self.register_to_config(**diffusers_config(network.config, prediction_type))

    @property
    def student(self) -> Student | None:
        """Return what the network was distilled for; None: it was not."""
        return self.network.student

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes fewer options
        cls, path: str | Path, subfolder: str = "", torch_dtype: torch.dtype | None = None, **_: Any
    ) -> PixCellTransformer2DModel:
        """Open whatever `load_weights` reads, or a repository of the hub. Raises as it does."""
        source = _resolve_folder(path, {}) / subfolder
        weights = load_weights(source)
        if "num_heads" not in weights.architecture:
            raise InputError(f"{source} does not say how many heads attention has, and no preset has its width")
        network = PixArt(**weights.architecture)
        load_into(network, weights.state_dict, source)
        network.student = weights.student
        network.to(torch_dtype or weights.state_dict["x_embedder.proj.weight"].dtype)
        return cls(network, weights.prediction_type).eval()

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes fewer options
        self, save_directory: str | Path, variant: str | None = None, **_: Any
    ) -> None:
        """Write a folder of the released layout. Raises InputError when it is already there, and for a variant."""
        if variant is not None:
            raise InputError(f"variant {variant!r}: a folder holds one set of weights; name another folder for another")
        save_diffusers(self.network, save_directory, self.prediction_type)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | Condition,
        timestep: torch.Tensor,
        return_dict: bool = True,
        controlnet_outputs: Sequence[torch.Tensor] | None = None,
        target_timestep: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """hidden_states (B, C, H/8, W/8), encoder_hidden_states (B, L, D), timestep (B,) or one -> (B, 2C, H/8, W/8).

        controlnet_outputs: residuals (B, N, W) of a ControlNet, added behind the first blocks. target_timestep (B,): the one that a
        jump ends at, of a student of trajectories.
        """
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(len(hidden_states))
        tokens = encoder_hidden_states.to(self.dtype)
        x = hidden_states.to(self.dtype)
        output = self.network(x, timestep, tokens, residuals=controlnet_outputs, target=target_timestep)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


class PixCellControlNet(ModelMixin, ConfigMixin):
    """A ControlNet as a diffusers model: `network` is the ControlNet itself, and folders have the released layout."""

    config_name = "config.json"

    def __init__(self, network: ControlNet):
        super().__init__()
        self.network = network
        self.register_to_config(**controlnet_layout(network.config))

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes fewer options
        cls, path: str | Path, subfolder: str = "", torch_dtype: torch.dtype | None = None, **_: Any
    ) -> PixCellControlNet:
        """Open whatever `load_controlnet` reads, or a repository of the hub. Raises as it does."""
        network = load_controlnet(_resolve_folder(path, {}) / subfolder)
        return cls(network.to(torch_dtype) if torch_dtype is not None else network).eval()

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes fewer options
        self, save_directory: str | Path, variant: str | None = None, **_: Any
    ) -> None:
        """Write a folder of the released layout. Raises InputError when it is already there, and for a variant."""
        if variant is not None:
            raise InputError(f"variant {variant!r}: a folder holds one set of weights; name another folder for another")
        save_controlnet(self.network, save_directory)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        conditioning: torch.Tensor,
        dropped: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Return the residuals (B, N, W) of each block, as ControlNet.forward does."""
        x, tokens, control = (each.to(self.dtype) for each in (hidden_states, encoder_hidden_states, conditioning))
        return self.network(x, timestep, tokens, control, dropped)


class PixCellPipeline(DiffusionPipeline):
    """Images for UNI2-h embeddings. Components: transformer, vae (16 channels, an eighth of the size), scheduler, controlnet.

    controlnet: what an image steers the samples by; None where there is none.
    scheduler: any of diffusers that takes what the network predicts; the default is the project's dpm-solver, and of a student its own.

    Examples:
        >>> import pixcell
        >>> pipe = pixcell.PixCellPipeline.from_pretrained("output/256/checkpoints/last_ema.ckpt", vae="tiny")
        >>> embeddings = torch.from_numpy(pixcell.open_run("output/256").embed("tissue.png"))
        >>> pipe(embeddings, num_inference_steps=4, num_images_per_prompt=2).images[1].save("sample.png")
    """

    model_cpu_offload_seq = "controlnet->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["scheduler", "controlnet"]
    _not_chosen: Any = (
        None  # a scheduler that nobody named, which gives way to a student's, whenever the network becomes one
    )

    def __init__(
        self,
        transformer: PixCellTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin | None = None,
        controlnet: PixCellControlNet | None = None,
    ):
        super().__init__()
        if scheduler is None:
            solver = transformer.student.solver if transformer.student else DEFAULT_SOLVER
            scheduler = build_scheduler(solver, transformer.prediction_type)
            self._not_chosen = scheduler
        if controlnet is not None:
            check_control_fits(controlnet.network.config, transformer.network.config)
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, controlnet=controlnet)
        self.image_processor = VaeImageProcessor(vae_scale_factor=LATENT_FACTOR)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes fewer options
        cls,
        path: str | Path,
        transformer: PixCellTransformer2DModel | None = None,
        vae: AutoencoderKL | str | Path | None = None,
        scheduler: SchedulerMixin | None = None,
        controlnet: PixCellControlNet | str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> PixCellPipeline:
        """Open a pipeline's folder, a transformer's alone, weights that `load_weights` reads, or a repository of the hub.

        Components given win over those of the folder and stay as they are, whatever torch_dtype says. vae: also a folder
        or the name of an embedded codec, needed where the folder has none, as the released ones. controlnet: also whatever
        `load_controlnet` reads, or a repository. Of a repository only
        .json and .safetensors files are downloaded, and nothing in it is executed. options: revision, cache_dir, token,
        local_files_only, for a repository. Raises MissingError, InputError.
        """
        folder = _resolve_folder(path, {name: options.pop(name) for name in HUB_OPTIONS if name in options})
        unknown = sorted(options.keys() - {"trust_remote_code", "custom_pipeline", "use_safetensors"})
        if unknown:
            raise InputError(f"PixCellPipeline.from_pretrained takes no {', '.join(unknown)}")
        is_pipeline = (folder / PIPELINE_INDEX).is_file()
        if transformer is None:
            transformer = PixCellTransformer2DModel.from_pretrained(
                folder / "transformer" if is_pipeline else folder, torch_dtype=torch_dtype
            )
        has_own = scheduler is None and is_pipeline and (folder / "scheduler").is_dir()
        stored = _open_scheduler(folder) if has_own else None
        if vae is None and (folder / "vae").is_dir():
            vae = folder / "vae"
        if vae is None:
            raise MissingError(
                f"{path} has no VAE: give vae=, an AutoencoderKL or its folder (SD3.5's for the released weights)"
            )
        if controlnet is None and (folder / "controlnet").is_dir():
            controlnet = folder / "controlnet"
        if controlnet is not None and not isinstance(controlnet, PixCellControlNet):
            controlnet = PixCellControlNet.from_pretrained(controlnet, torch_dtype=torch_dtype)
        if not isinstance(vae, torch.nn.Module):
            vae = load_vae(codec_folder(vae), torch_dtype or torch.float32)
        pipe = cls(transformer, vae.eval(), scheduler or stored, controlnet)
        if scheduler is None:
            pipe._not_chosen = pipe.scheduler
        return pipe

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes fewer options
        self, save_directory: str | Path, **options: Any
    ) -> None:
        """Write transformer/, vae/, scheduler/, a controlnet/ if there is one, and model_index.json.

        Raises InputError when the folder holds a transformer.
        """
        if options.get("variant") is not None:
            raise InputError(f"variant {options['variant']!r}: a folder holds one set of weights; name another folder")
        if (Path(save_directory) / "transformer").exists():
            raise InputError(f"{save_directory} is already there; name a new folder")
        super().save_pretrained(save_directory, **options)

    def get_unconditional_embedding(self, batch_size: int = 1) -> torch.Tensor:
        """Return the network's null condition, (batch_size, L, D)."""
        return self.transformer.network.null_condition.expand(batch_size, -1, -1)

    def enable_vae_tiling(self) -> None:
        """Decode in tiles: less memory for images beyond the VAE's own size."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode whole images again."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode image by image."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode whole batches again."""
        self.vae.disable_slicing()

    @torch.no_grad()
    def __call__(
        self,
        uni_embeds: torch.Tensor | Condition,
        negative_uni_embeds: torch.Tensor | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        height: int | None = None,
        width: int | None = None,
        latents: torch.Tensor | None = None,
        guidance_interval: tuple[float, float] | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, torch.Tensor]], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        control_image: Any = None,
        controlnet_conditioning_scale: float = 1.0,
        image: Any = None,
        strength: float | None = None,
        mask_image: Any = None,
    ) -> ImagePipelineOutput | tuple:
        """Sample images for embeddings (B, L, D) or a Condition, num_images_per_prompt of each, one after the other.

        negative_uni_embeds (B, L, D) or (1, L, D): the null condition when not given. guidance_scale: null + w * (conditional
        - null), 1 for none, 1.5 when not given. num_inference_steps: 20 when not given. A student takes the steps that it was made for,
        and has its guidance in every prediction. latents (B * n, C, H/8, W/8): the noise to begin with, drawn from `generator` when
        not given, which may be a list of one for each image. output_type: pil, np (B * n, H, W, 3) and pt (B * n, 3, H, W) in [0, 1],
        or latent, the network's. height, width: in pixels, of the trained size when not given; over another size positions
        are spread as the released code does, so that tissue shrinks on larger pictures: pixcell large keeps its scale.
        control_image: what steers the ControlNet, of height and width: a PIL image, an array uint8 (H, W, 3), a tensor (B, 3, H,
        W) in [0, 1], or a list of one for each condition; of a ControlNet of maps a mask (H, W), or maps (K, H, W) or (B, K,
        H, W) from 0 to 1. controlnet_conditioning_scale: how much it counts. The null pass has no control, as released.
        image: a picture to begin at, or one for each condition: PIL, uint8 (H, W, 3), or (B, 3, H, W) in [0, 1], of height and width
        or, where these are not given, of theirs. strength: share of the steps that are taken from it on; 0 is the VAE's reconstruction,
        1 keeps nothing of what changes; 0.5, or 1 with a mask. mask_image: what changes, a mask of the image's size, or one for each;
        elsewhere the result is the image, pixel for pixel. At strength 1 nothing beneath the mask is read.
        guidance_interval: as `diffusion.sampling.denoise` has it. callback_on_step_end(pipe, i, t, {"latents": ...}) may
        return other latents. Raises InputError for invalid arguments, and for a scheduler of another prediction.
        """
        student = self.transformer.student
        if student is not None:
            student.check_guidance(guidance_scale, guidance_interval)
            guidance_scale = 1.0
        guidance_scale = DEFAULT_GUIDANCE if guidance_scale is None else guidance_scale
        usual_steps = student.usual_steps if student else DEFAULT_STEPS
        steps = usual_steps if num_inference_steps is None else num_inference_steps
        for name, value in (
            ("num_inference_steps", steps),
            ("num_images_per_prompt", num_images_per_prompt),
        ):
            if value < 1:
                raise InputError(f"{name} {value}: expected at least 1")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type {output_type!r}: expected pil, np, pt or latent")
        if tuple(callback_on_step_end_tensor_inputs) != ("latents",):
            raise InputError(
                f"callback_on_step_end_tensor_inputs {callback_on_step_end_tensor_inputs}: there is latents alone"
            )
        scheduler, device = self._compatible_scheduler(), self._execution_device
        tokens, null = self._conditions(uni_embeds, negative_uni_embeds, num_images_per_prompt)
        picture = None
        if image is not None:
            begun = StartingImages.read(image, mask_image, strength, len(uni_embeds), (height, width))
            picture = begun.repeat_interleave(len(tokens))
            height, width = picture.pixels.shape[1:3]
        elif strength is not None or mask_image is not None:
            raise InputError("strength and mask_image are of an image; give it, too")
        latents = self._noise(len(tokens), height, width, latents, generator)
        if control_image is not None:
            control = self._control(control_image, latents.shape[2:], len(uni_embeds), len(tokens))
            weight = torch.full((len(tokens),), float(controlnet_conditioning_scale))
            tokens = Condition(as_condition(tokens).tokens, control.cpu(), weight)
        targets = None
        if student is None:
            scheduler.set_timesteps(steps, device=device)
        else:
            scheduler = self._student_scheduler(student, steps)
            if self.transformer.network.config.use_target_timestep:
                targets = jump_targets(scheduler.timesteps.tolist()).to(device)
        start, known, encoded = None, None, latents
        taken = len(scheduler.timesteps)
        if picture is not None:
            encoded = self._encode(from_uint8(torch.from_numpy(picture.shown).permute(0, 3, 1, 2)))
            start, known = picture.begin_at(encoded)
            taken = count_started_steps(picture.strength, taken) if picture.strength else 0
        with self.progress_bar(total=taken) as progress:  # pyright: ignore[reportCallIssue]  # untyped

            def on_step(i: int, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
                progress.update()
                changed = callback_on_step_end(self, i, t, {"latents": x}) if callback_on_step_end else None
                return (changed or {}).get("latents")

            if picture is not None and not picture.strength:
                latents = encoded
            else:
                latents = denoise(
                    partial(self._predict, targets=targets),
                    scheduler,
                    latents.to(device, torch.float32),
                    tokens.to(device),
                    null.to(device),
                    guidance_scale,
                    guidance_interval,
                    generator,
                    on_step,
                    start,
                    known=known,
                )
        images: Any = latents if output_type == "latent" else self._decode(latents, output_type, picture)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _student_scheduler(self, student: Student, steps: int) -> Any:
        """Return the scheduler of a student's steps. Raises InputError for steps and schedulers that it was not made for."""
        student.check_steps(steps)
        wanted = prepare_scheduler(student.solver, steps, self.transformer.prediction_type, student.spacing)
        own: Any = self.scheduler
        is_chosen = own is not self._not_chosen
        if is_chosen and (type(own) is not type(wanted) or _settings_of(own) != _settings_of(wanted)):
            raise InputError(f"the network is a student that is sampled by {student.solver}; leave the scheduler out")
        return wanted

    def _predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | Condition,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the transformer's prediction, steered by the ControlNet where the condition has a control.

        targets: by timestep, the one that its step ends at.
        """

        def transformer(x: Any, timestep: Any, y: Any, dropped: None = None, residuals: Any = None) -> torch.Tensor:
            # the modules themselves are called: hooks move them to their device
            target = None if targets is None else targets[timestep]
            kwargs = {"controlnet_outputs": residuals, "target_timestep": target}
            return self.transformer(x, y, timestep, return_dict=False, **kwargs)[0]

        if not isinstance(y, Condition) or y.control is None:
            return transformer(x, timestep, y)
        times = torch.as_tensor(timestep, device=x.device).expand(len(x))
        return ControlledNetwork(transformer, self.controlnet)(x, times, y)

    def _control(self, images: Any, cells: torch.Size, conditions: int, count: int) -> torch.Tensor:
        """Return the controls (B * n, K, h, w) of control images, one for each of B conditions, or for all. Raises InputError."""
        if self.controlnet is None:
            raise InputError("control_image: the pipeline has no ControlNet; open it with controlnet=")
        maps = self.controlnet.network.config.maps
        pixels = stack_pixels(images, len(maps), "control_image")
        wanted = tuple(LATENT_FACTOR * side for side in cells)
        if tuple(pixels.shape[2:]) != wanted:
            raise InputError(
                f"control_image of {pixels.shape[3]} x {pixels.shape[2]} pixels: expected {wanted[1]} x {wanted[0]}, as the image"
            )
        if len(pixels) not in (1, conditions):
            raise InputError(f"{len(pixels)} control images: expected one, or one for each of {conditions} conditions")
        control = maps_to_control(pixels) if maps else self._encode(2 * pixels - 1)
        return control.repeat_interleave(count // len(control), dim=0)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return network latents (B, C, H/8, W/8) of pixels (B, 3, H, W) in [-1, 1], in windows, as those of training are encoded."""
        scale = LatentScale(self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0)
        whole = pixels.to(self._execution_device, self.vae.dtype)
        bands = [
            torch.cat([self.vae.encode(part).latent_dist.mean for part in band.split(WINDOW, dim=3)], dim=3)
            for band in whole.split(WINDOW, dim=2)
        ]
        return scale.to_network(torch.cat(bands, dim=2).float())

    def _conditions(
        self, embeds: torch.Tensor | Condition, null: torch.Tensor | None, images_each: int
    ) -> tuple[torch.Tensor | Condition, torch.Tensor]:
        """Return the condition of every image, of B * n, and the null tokens (B * n, L, D) or (1, L, D)."""
        tokens = embeds.tokens if isinstance(embeds, Condition) else embeds
        self._check_tokens(tokens, "uni_embeds")
        null = self.get_unconditional_embedding() if null is None else null
        self._check_tokens(null, "negative_uni_embeds")
        if len(null) not in (1, len(tokens)):
            raise InputError(f"{len(null)} negative_uni_embeds: expected 1, or {len(tokens)} as uni_embeds are")
        several = null.repeat_interleave(images_each, dim=0) if len(null) > 1 else null
        if isinstance(embeds, Condition):
            return embeds.repeat_interleave(images_each), several
        return tokens.repeat_interleave(images_each, dim=0), several

    def _noise(
        self,
        images: int,
        height: int | None,
        width: int | None,
        latents: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """Return what denoising begins with, (B * n, C, H/8, W/8): new noise, or the latents given, of that shape."""
        network, trained = self.transformer.network, self.transformer.config.sample_size * LATENT_FACTOR
        sides, unit = (
            [trained if side is None else side for side in (height, width)],
            LATENT_FACTOR * network.config.patch_size,
        )
        if any(side < unit or side % unit for side in sides):
            raise InputError(f"height and width {sides[0]} x {sides[1]}: expected multiples of {unit}")
        if isinstance(generator, list) and len(generator) != images:
            raise InputError(f"{len(generator)} generators for {images} images: expected one, or one each")
        shape = (images, network.config.in_channels, *(side // LATENT_FACTOR for side in sides))
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise InputError(f"latents {tuple(latents.shape)}: expected {shape}")
        return latents

    def _compatible_scheduler(self) -> Any:
        """Return the scheduler, if it fits what the network predicts.

        Other kinds than DDPM come without the learned variance, which they would take for channels of a picture.
        """
        scheduler, predicts = self.scheduler, self.transformer.prediction_type
        if not hasattr(scheduler, "init_noise_sigma"):
            raise InputError(
                f"{type(scheduler).__name__} is made for other networks than those that predict {predicts}"
            )
        expects = getattr(scheduler.config, "prediction_type", predicts)
        if expects != predicts:
            raise InputError(
                f"the network predicts {predicts}, the scheduler expects {expects}; make it with prediction_type={predicts!r}"
            )
        if getattr(scheduler.config, "variance_type", None) and not isinstance(scheduler, DDPMScheduler):
            return type(scheduler).from_config(scheduler.config, variance_type=None)
        return scheduler

    def _check_tokens(self, tokens: torch.Tensor, name: str) -> None:
        if not isinstance(tokens, torch.Tensor):
            raise InputError(f"{name} is a {type(tokens).__name__}: expected a torch.Tensor")
        wanted = (self.transformer.config.caption_num_tokens, self.transformer.config.caption_channels)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != wanted:
            raise InputError(f"{name} of shape {tuple(tokens.shape)}: expected (B, {wanted[0]}, {wanted[1]})")

    def _decode(self, latents: torch.Tensor, output_type: str, picture: StartingImages | None = None) -> Any:
        scale = LatentScale(self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0)
        pixels = self.vae.decode(scale.to_raw(latents).to(self.vae.dtype), return_dict=False)[0].float().clamp(-1, 1)
        if picture is not None and picture.change is not None:
            pasted = picture.paste(to_uint8(pixels).permute(0, 2, 3, 1).numpy())
            pixels = from_uint8(torch.from_numpy(pasted).permute(0, 3, 1, 2))
        return self.image_processor.postprocess(pixels, output_type=output_type)


def _resolve_folder(path: str | Path, options: dict[str, Any]) -> Path:
    """Return a file or folder of this machine, or of a repository of the hub, downloaded without code.

    Raises MissingError.
    """
    folder = network_folder(path)
    if folder.exists():
        return folder
    if str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise MissingError(f"no folder {path}, and a repository of the hub would be named OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"], **options))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise MissingError(f"no folder {path}, and no such repository can be had ({reason})") from None


def _settings_of(scheduler: Any) -> dict[str, Any]:
    """Return the settings of a scheduler, without what diffusers notes of where they are from."""
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def _open_scheduler(folder: Path) -> SchedulerMixin:
    """Open the scheduler of a pipeline's folder. Raises InputError unless its class is one of diffusers."""
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        name = read_json(file)["_class_name"]
    except (InputError, KeyError) as error:
        raise InputError(f"{file} is not the config of a scheduler ({error!r})") from None
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise InputError(f"{file}: diffusers has no scheduler {name!r}")
    scheduler: Any = kind.from_pretrained(str(file.parent))
    return scheduler
