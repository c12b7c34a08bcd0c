"""Laws of the copy check: it finds copies however they are disguised, and calls new images new."""

import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse.exact import EmpiricalDenoiser, GaussianDenoiser
from suffuse.samplers import Heun
from suffuse.schedules import VPCosine
from suffuse_medical.privacy import CopyEmbedding, membership, memorisation


def _images(n, seed):
    """Smooth random fields (n, 1, 16, 16): no two alike."""
    coarse = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic"))


@pytest.fixture(scope="module")
def sets():
    return _images(96, 0), _images(96, 1), _images(96, 2)


@pytest.fixture(scope="module")
def embedding(sets):
    torch.manual_seed(0)
    return CopyEmbedding(1, width=8).fit(torch.cat(sets[:2]))


def test_the_perfect_memoriser_is_flagged(sets, embedding):
    train, held_out, _ = sets
    denoiser = EmpiricalDenoiser(train, VPCosine())
    drawn = Heun(steps=12)(denoiser, shape=(64, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    found = memorisation(drawn, train, held_out, embedding=embedding)
    assert found.share >= 0.99
    assert 20 < found.memorised <= len(train)
    with pytest.raises(InvalidArgument, match="more than the limit"):
        found.check(0.05)


def test_mirrored_and_noisy_copies_are_flagged(sets, embedding):
    train, held_out, _ = sets
    mirrored = (train[:64].flip(3) + 0.05 * torch.randn(64, 1, 16, 16)) * 1.1
    found = memorisation(mirrored, train, held_out, embedding=embedding)
    assert found.share >= 0.9
    assert (found.nearest == torch.arange(64)).float().mean() > 0.9, "and named"


def test_pixels_would_miss_a_mirrored_copy(sets):
    """Why there is an embedding at all."""
    train, held_out, _ = sets
    flat, known = train[:64].flip(3).flatten(1), train.flatten(1)
    usual = torch.cdist(held_out.flatten(1), known).amin(1)
    assert (torch.cdist(flat, known).amin(1) < usual.quantile(0.02)).float().mean() < 0.3


def test_fresh_images_are_not(sets, embedding):
    train, held_out, fresh = sets
    found = memorisation(fresh, train, held_out, embedding=embedding)
    assert found.share <= 0.08  # nominally 2%, of 96
    found.check(0.1)
    assert str(found.copies) in str(found)


def test_membership_knows_a_memoriser_and_not_an_honest_model(sets):
    train, held_out, _ = sets
    copied = membership(EmpiricalDenoiser(train, VPCosine()), train, held_out, draws=1)
    assert copied.auc > 0.99 and copied.tpr_at_1_percent > 0.9
    flat = torch.cat(sets).flatten(1)
    honest = GaussianDenoiser(torch.zeros(1, 16, 16), torch.cov(flat.T) + 1e-3 * torch.eye(256), VPCosine())
    assert membership(honest, train, held_out, draws=1).auc == pytest.approx(0.5, abs=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_are_brought_to_the_model(sets):
    train, held_out, fresh = sets
    denoiser = EmpiricalDenoiser(train, VPCosine()).cuda()
    assert membership(denoiser, train, held_out, draws=1).auc > 0.99
    assert len(memorisation(fresh, train, held_out, embedding=CopyEmbedding(1).cuda()).copied) == len(fresh)


def test_one_clear_error_each(sets, embedding):
    train, held_out, _ = sets
    for call, message in (
        (lambda: memorisation(train[..., :8], train, held_out), "of one shape"),
        (lambda: memorisation(train, train, held_out[:10], embedding=embedding), "at least 50 held-out images, got 10"),
        (
            lambda: memorisation(train, train, held_out, train_patients=["a", "b"], held_out_patients=["b"]),
            "split by patient",
        ),
        (lambda: memorisation(train * torch.nan, train, held_out, embedding=embedding), "drawn is empty or has NaN"),
        (lambda: memorisation(train[:0], train, held_out, embedding=embedding), "drawn is empty or has NaN"),
        (lambda: memorisation(train, train, held_out / 0, embedding=embedding), "held_out is empty or has NaN"),
        (lambda: membership(EmpiricalDenoiser(train, VPCosine()), train, held_out / 0), "held_out is empty or has NaN"),
        (lambda: CopyEmbedding(1).fit(train[:2]), "at least 4 images"),
        (lambda: membership(EmpiricalDenoiser(train, VPCosine()), train[:1], held_out), "at least two images"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
