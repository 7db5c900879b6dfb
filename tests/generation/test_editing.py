"""Edits: what they keep to the bit, what they never read, and which windows they condition by what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import texture
from PIL import Image
from runs import forget_processes, save_run
from scoring_data import PaddedColour

from diffusion.condition import Condition
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import from_uint8, to_uint8
from diffusion.encoders.networks import View
from diffusion.filling import fill_with_tissue
from diffusion.generation.conditions import NamedCondition, slerp
from diffusion.generation.controls import to_control
from diffusion.generation.edit_sources import extend_picture
from diffusion.generation.editing import Box, Canvas, Editor, EditSettings, Look
from diffusion.generation.generators import ImageMaker
from diffusion.generation.session import Session, open_session
from diffusion.generation.solver import Solver
from diffusion.model.controlnet import ControlNet
from diffusion.utils.errors import InputError

WIDTH = 4  # of the embedder's: the mean colour, and nothing


EMBEDDER = PatchEmbedder(PaddedColour(), "colours", width=WIDTH, view=View(None, mean=(0, 0, 0), std=(1, 1, 1)))


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    """A network of 256 pixels with random weights, and an embedder of colours."""
    folder = tmp_path_factory.mktemp("run")
    run = save_run(folder / "run", folder, WIDTH, 256, prediction_type="epsilon")
    session = open_session(run, solver=Solver(steps=4, guidance=1.0), device="cpu", seed=3)
    session.__dict__["embedder"] = EMBEDDER  # in place of what the cached property would load
    yield session
    forget_processes()


def picture(height: int = 256, width: int = 256, seed: int = 1) -> np.ndarray:
    """Blobs, uint8 (H, W, 3)."""
    return np.array(texture(1024, seed).crop((0, 0, width, height)))


def square(size: tuple[int, int], top: int, left: int, side: int) -> np.ndarray:
    """A mask of a square."""
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_strength_0_is_the_reconstruction_of_the_codec(session):
    pixels = picture()
    codec = session.codec
    latents = codec.encode(from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    expected = to_uint8(codec.decode(latents)[0]).permute(1, 2, 0).numpy()
    assert np.array_equal(Editor(session, EditSettings(0.0)).edit(Canvas(pixels)), expected)


def test_strength_1_is_plain_sampling(session):
    pixels = picture()
    tokens = EMBEDDER.embed(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    maker = ImageMaker(
        session.run, session.codec, [NamedCondition("x", Condition(tokens[None]))] * 3, session.seed, session.solver
    )
    [(_, _, expected)] = maker.images([2])
    edited = Editor(session, EditSettings(1.0)).edit(Canvas(pixels), number=2)
    assert np.array_equal(edited, expected.permute(1, 2, 0).numpy())


def test_a_strength_between_is_further_from_the_picture_the_larger_it_is(session):
    pixels = picture()
    away = [
        np.abs(Editor(session, EditSettings(strength)).edit(Canvas(pixels)).astype(int) - pixels).mean()
        for strength in (0.0, 0.25, 0.75)
    ]
    assert away == sorted(away) and away[0] < away[2]


@pytest.mark.parametrize("size", [(256, 256), (700, 300), (130, 90)])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_what_does_not_change_stays_pixel_for_pixel(session, size, strength):
    pixels, mask = picture(*size), square(size, 40, 20, 50)
    edited = Editor(session, EditSettings(strength)).edit(Canvas(pixels, mask))
    assert edited.shape == pixels.shape and edited.dtype == np.uint8
    assert np.array_equal(edited[~mask], pixels[~mask]) and not np.array_equal(edited[mask], pixels[mask])


def test_nothing_beneath_a_mask_is_read_at_strength_1(session):
    """Pen must not colour what replaces it: neither latents nor embeddings nor the seam may have seen it."""
    pixels, mask = picture(), square((256, 256), 91, 50, 77)
    inked = np.where(mask[..., None], np.uint8([0, 255, 0]), pixels)
    editor = Editor(session, EditSettings())
    assert np.array_equal(editor.edit(Canvas(pixels, mask)), editor.edit(Canvas(inked, mask)))
    gentle = Editor(session, EditSettings(0.5))
    assert not np.array_equal(gentle.edit(Canvas(pixels, mask)), gentle.edit(Canvas(inked, mask)))


def test_there_is_no_step_at_the_seam(session):
    """Random weights sample noise, so that a seam would be steep; the picture is smooth."""
    pixels, mask = picture(), square((256, 256), 64, 64, 128)
    edited = Editor(session, EditSettings()).edit(Canvas(pixels, mask)).astype(int)
    across = np.abs(edited[64:192, 63] - edited[64:192, 64]).mean()
    inside = np.abs(np.diff(edited[100:156, 100:156], axis=1)).mean()
    assert across < inside / 2


def test_a_small_change_of_a_large_picture_takes_one_window():
    canvas = Canvas(picture(1000, 900), square((1000, 900), 500, 600, 100))
    assert canvas.choose_area(256) == Box(522, 422, 256, 256)
    assert canvas.choose_area(1024) == Box(0, 0, 900, 1000)
    corner = Canvas(picture(1000, 900), square((1000, 900), 0, 880, 15))
    assert corner.choose_area(256) == Box(644, 0, 256, 256)
    wide = Canvas(picture(1000, 900), square((1000, 900), 300, 100, 200))
    assert wide.choose_area(256) == Box(0, 144, 512, 512)


class TestEmbeddings:
    TUMOUR, STROMA = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 2.0, 0, 0])

    def tokens(self, session, looks, mask, strength=1.0, added=None) -> torch.Tensor:
        editor = Editor(session, EditSettings(strength), added=added)
        canvas = Canvas(picture(512, 512), mask)
        box = Box(0, 0, 512, 512)
        return editor.condition_tokens(editor.prepare(canvas, box), box, looks)

    def test_windows_that_change_take_another_look(self, session):
        own = self.tokens(session, [], None)
        mask = square((512, 512), 0, 0, 300)  # reaches into all four windows
        left, right = mask.copy(), mask.copy()
        left[:, 256:], right[:, :256] = False, False
        found = self.tokens(session, [Look(self.TUMOUR, where=left), Look(self.STROMA, where=right)], mask, 0.5)
        assert torch.allclose(found[:, 0], self.TUMOUR) and torch.allclose(found[:, 1], self.STROMA)
        corner = self.tokens(session, [Look(self.TUMOUR)], square((512, 512), 300, 300, 50), 0.5)
        assert torch.allclose(corner[1, 1], self.TUMOUR) and torch.equal(corner[0], own[0])
        assert torch.equal(corner[1, 0], own[1, 0])

    def test_a_look_of_a_place_comes_before_that_of_all_that_changes(self, session):
        mask = square((512, 512), 0, 0, 512)[:, ::-1].copy()
        mask[500:] = False
        left = mask.copy()
        left[:, 256:] = False
        found = self.tokens(session, [Look(self.STROMA), Look(self.TUMOUR, where=left)], mask, 0.5)
        assert torch.allclose(found[:, 0], self.TUMOUR) and torch.allclose(found[:, 1], self.STROMA)

    def test_a_look_may_count_in_part(self, session):
        own = self.tokens(session, [], None)
        found = self.tokens(session, [Look(self.TUMOUR, 0.25)], None)
        assert torch.allclose(found[1, 1], slerp(own[1, 1][None], self.TUMOUR[None], 0.25)[0])

    def test_what_is_added_turns_embeddings_and_keeps_their_lengths(self, session):
        own = self.tokens(session, [], None)
        found = self.tokens(session, [], None, added=self.TUMOUR - self.STROMA)
        assert torch.allclose(found.norm(dim=-1), own.norm(dim=-1))
        moved = own + self.TUMOUR - self.STROMA
        cosine = torch.nn.functional.cosine_similarity(found, moved, dim=-1)
        assert torch.allclose(cosine, torch.ones(2, 2)) and not torch.allclose(found, own)


def test_a_super_resolution_agrees_with_its_picture(session):
    """On noise, with white and black pixels, where clipping is in the way."""
    coarse = np.random.default_rng(0).choice(np.uint8([0, 10, 128, 250, 255]), (64, 64, 3))
    start = np.array(Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC))
    fine = Editor(session, EditSettings(0.5)).edit(Canvas(start, coarse=coarse)).astype(float)
    means = fine.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.sqrt(((means - coarse) ** 2).mean()) <= 1 and not np.array_equal(fine, start)


def test_what_changes_all_or_nothing_or_has_another_size_is_refused():
    pixels = picture()
    for mask, message in (
        (np.zeros((256, 256), dtype=bool), "nothing would change"),
        (np.ones((256, 256), dtype=bool), "of all of the picture"),
        (np.ones((256, 250), dtype=bool), "has 250 x 256 pixels: expected 256 x 256"),
    ):
        with pytest.raises(InputError, match=message):
            Canvas(pixels, mask)
    with pytest.raises(InputError, match="expected RGB, uint8"):
        Canvas(pixels[..., 0])
    with pytest.raises(InputError, match=r"strength 1\.5"):
        EditSettings(1.5)


@pytest.mark.parametrize("maps", [("nuclei",), ()])
def test_a_controlnet_reads_the_part_that_the_network_sees(session, monkeypatch, maps):
    """A mask, or the picture's latents, cut and filled up as the picture is."""
    torch.manual_seed(0)
    controlnet = ControlNet.of(session.run.model, 1, maps=maps, mask_kind="binary")
    for parameter in controlnet.parameters():  # which begin as nothing
        torch.nn.init.normal_(parameter, std=0.5)
    steered = replace(session, run=replace(session.run, controlnet=controlnet.eval()))
    steered.__dict__["embedder"] = EMBEDDER
    pixels, change = picture(400, 600), square((400, 600), 100, 500, 60)
    control = square((400, 600), 120, 480, 40) if maps else picture(400, 600, seed=7)
    seen = []
    editor = Editor(steered, EditSettings())
    latents = editor.make.latents
    monkeypatch.setattr(editor.make, "latents", lambda *a, **k: seen.append(a[1].control) or latents(*a, **k))
    first = editor.edit(Canvas(pixels, change, control))
    box = Canvas(pixels, change).choose_area(256)
    expected = to_control(np.ascontiguousarray(control[box.slices]), steered.run, session.codec, (256, 256), "x")
    assert torch.equal(seen[0], expected)
    other = np.zeros_like(control) if maps else picture(400, 600, seed=8)
    assert not np.array_equal(first, editor.edit(Canvas(pixels, change, other)))
    with pytest.raises(InputError, match="a control has 10 x 10 pixels: expected 600 x 400"):
        Canvas(pixels, change, np.zeros((10, 10)))
    with pytest.raises(InputError, match="has no ControlNet"):
        Editor(session, EditSettings()).edit(Canvas(pixels, change, control))


def test_large_holes_and_what_is_filled_up_to_windows_are_tissue(session):
    """Flat colour would be embedded as such."""
    pixels, hidden = picture(300, 260), np.zeros((300, 260), dtype=bool)
    hidden[20:290, 12:250] = True  # what is mirrored or moved is mostly hidden, too
    hidden[:, 100:140] = hidden[60:80] = True
    filled = fill_with_tissue(pixels, hidden)
    colours = {tuple(colour) for colour in pixels[~hidden]}
    assert {tuple(colour) for colour in filled.reshape(-1, 3)} <= colours and filled[100:200, 50:210].std() > 5
    canvas = Canvas(*extend_picture(picture(256, 256), (1000, 0, 100, 0)))
    area = Editor(session, EditSettings()).prepare(canvas, canvas.choose_area(256))
    assert area.pixels.shape == (256, 1536, 3)
    assert all(area.pixels[:, left : left + 64].std() > 5 for left in range(0, 1536, 64))


def test_tissue_is_mirrored_however_far_a_picture_is_extended():
    pixels = picture(64, 80)
    canvas = np.pad(pixels, ((100, 300), (500, 90), (0, 0)), constant_values=255)
    hidden = np.pad(np.zeros((64, 80), dtype=bool), ((100, 300), (500, 90)), constant_values=True)
    filled = fill_with_tissue(canvas, hidden)
    assert np.array_equal(filled[100:164, 500:580], pixels)
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert {tuple(colour) for colour in filled.reshape(-1, 3)} <= colours
    assert all(filled[y : y + 64, x : x + 80].std() > 5 for y, x in ((0, 0), (400, 590), (200, 200)))
