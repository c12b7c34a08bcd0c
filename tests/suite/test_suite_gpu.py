"""On a GPU: every recipe trains there and samples from its checkpoint, and samplers never wait for the device."""

from pathlib import Path

import pytest
import torch

from suffuse import Condition, NetworkDenoiser, training
from suffuse.exact import GaussianDenoiser
from suffuse.guidance import Predicted
from suffuse.recipes import get_recipe
from suffuse.samplers import SAMPLERS, by_name
from suffuse.schedules import DiscreteBetas, VPCosine

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
#: Tiny trainings: name -> (options of training, options of sampling; None where the recipe draws nothing).
RECIPES = {
    "core/digits": ({"steps": 3}, {"n": 2, "steps": 2}),
    "core/radd": ({"steps": 3, "length": 16, "hidden": 16, "depth": 1}, {"n": 2, "steps": 4}),
    "graphs/nsd": ({"dataset": "karate", "model": "general", "epochs": 3}, {}),
    "graphs/signal-imputation": ({"steps": 3}, {"n": 1, "draws": 3, "steps": 2}),
    "materials3d/volume-fraction": (
        {"steps": 3, "volumes": 4, "size": 16, "widths": (8, 8)},
        {"volume_fraction": (0.5,), "steps": 2},
    ),
    "materials3d/ldm": ({"preset": "smoke"}, {"targets": {"vf_1": 0.5}, "n": 2, "steps": 2}),
    "medical/anomaly": ({"steps": 2, "patients": 2}, None),
    "medical/joint": ({"steps": 2, "patients": 2}, None),
    "medical/latent-diffusion": ({"steps": 2, "autoencoder_steps": 2, "patients": 2}, {"n": 2, "steps": 2}),
    "medical/reconstruction": ({"steps": 2, "patients": 2}, None),
    "medical/segmentation": ({"steps": 2, "patients": 2}, None),
    "medical/style": ({"steps": 2, "patients": 2}, None),
    "medical/tissue-to-t1": ({"steps": 2, "patients": 2}, {"n": 2, "steps": 2}),
    "rl_planning/aligndiff": (
        {"env_id": "Hopper-v5", "episodes": 6, "pairs": 20, "measure": 20, "label_steps": 2, "steps": 2, "hidden": 16,
         "depth": 1, "batch_size": 8},
        None,
    ),
    "timeseries/tsdiff": ({"steps": 2}, {"n": 2, "steps": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_and_sample(name, tmp_path, monkeypatch):
    training, sampling = RECIPES[name]
    if name.startswith("rl_planning"):
        pytest.importorskip("mujoco")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    recipe = get_recipe(name)
    torch.cuda.reset_peak_memory_stats()
    checkpoint = recipe(out=tmp_path / "run", device=DEVICE, progress=False, **training)
    assert torch.cuda.max_memory_allocated() > 0
    assert list(Path(checkpoint).rglob("*.safetensors"))
    if sampling is not None:
        assert all(
            path.stat().st_size for path in recipe.sample(checkpoint, out=tmp_path / "out", device=DEVICE, **sampling)
        )


@pytest.fixture(scope="module")
def denoiser():
    a = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return GaussianDenoiser(torch.ones(8), a @ a.T / 8 + 0.02 * torch.eye(8), VPCosine())


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_do_on_a_gpu_what_they_do_on_a_cpu(name, denoiser):
    """From one noise to one sample (noise on the way is drawn on the CPU, from one seed), with no wait in between."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    sampler = by_name(name, steps=8)

    def draw(device):
        g = torch.Generator().manual_seed(2)
        return sampler(denoiser.to(device), x=x.to(device), generator=g)

    there = draw(DEVICE)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), draw("cpu"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc-2", "deis-3", "evodiff", "ddpm"])
@pytest.mark.parametrize("kind", ["exact", "network", "predicted"])
def test_no_step_waits_for_the_device(name, kind, denoiser):
    """Forty steps make the device wait no more often than four do: at the beginning and at the end."""
    there = NetworkDenoiser(Affine(), DiscreteBetas.linear()).to(DEVICE) if kind == "network" else denoiser.to(DEVICE)
    if kind == "predicted":
        there = Predicted(there, lambda x: (x[:, :2], torch.ones_like(x[:, :2])), torch.ones(64, 2, device=DEVICE))
    x, g = torch.randn(64, 8, device=DEVICE), torch.Generator(DEVICE).manual_seed(0)
    few, many = by_name(name, steps=4), by_name(name, steps=40)
    for sampler in (few, many):  # grids and coefficients are kept
        sampler(there, x=x, generator=g)

    def waits(sampler):
        with pytest.warns() as seen:
            torch.cuda.set_sync_debug_mode("warn")
            try:
                sampler(there, x=x, generator=g)
                torch.ones(1, device=DEVICE).item()  # one wait, so that there is a warning
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return len(seen)

    assert waits(many) <= waits(few)


class Affine(torch.nn.Module):
    """The smallest network that hears its noise level and a condition."""

    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(8, 8)
        self.unused = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, c_noise, cond=None):
        asked = 0 if cond is None else cond.tokens["y"][:, 0] * cond.masks["y"]
        return self.lin(x) * (1 + c_noise[:, None]) + asked


def test_a_recorded_network_learns_as_the_network_does():
    """Losses and weights of ten steps, with and without a condition, the last batch smaller than the others."""
    objective, found = training.DenoisingObjective(cond_dropout=0.5), []
    for record in (False, True):
        torch.manual_seed(0)
        denoiser = NetworkDenoiser(Affine(), VPCosine()).to(DEVICE)
        trained = training.recorded(denoiser) if record else denoiser
        optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
        data, g = torch.randn(80, 8, device=DEVICE), torch.Generator(DEVICE).manual_seed(1)
        losses = []
        for i in range(10):
            x = data[8 * i : 8 * i + (8 if i < 9 else 3)]
            cond = Condition(tokens={"y": x[:, None, :1].expand(-1, -1, 8).contiguous()}) if i % 3 else None
            optimizer.zero_grad()
            loss = objective(trained, x, cond, g)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        found.append((losses, denoiser.backbone.lin.weight.detach().clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("maps", ["diagonal", "orthogonal", "general"])
def test_sheaf_diffusion_is_the_same(maps):
    from suffuse_graphs import NeuralSheafDiffusion

    torch.manual_seed(0)
    edge_index = torch.randint(40, (2, 200))
    edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    x = torch.randn(40, 7)
    model = NeuralSheafDiffusion(7, 12, 2, 3, stalk_dim=3, maps=maps).eval()
    found = []
    for device in ("cpu", DEVICE):
        model.to(device).zero_grad()
        y = model(x.to(device), edge_index.to(device))
        y.square().sum().backward()
        found.append([y.detach().cpu(), *(p.grad.cpu().clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 5
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


def test_more_blocks_than_cusolver_takes_at_once():
    from suffuse_graphs.sheaf.laplacian import InverseSqrt

    a = torch.randn(70_000, 3, 3, device=DEVICE)
    a = a @ a.mT + torch.eye(3, device=DEVICE)
    half = InverseSqrt.apply(a)
    torch.testing.assert_close(half @ a @ half, torch.eye(3, device=DEVICE).expand_as(a), rtol=0, atol=1e-3)


def test_simulations_are_the_same():
    from suffuse_materials3d.simulate import CahnHilliard

    equation = CahnHilliard()
    u = equation.start(torch.tensor([0.0, 0.2]), (16, 16, 8), torch.Generator().manual_seed(0))
    here, there = (equation.run(u.to(device), [20.0]).cpu() for device in ("cpu", DEVICE))
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
    assert float(here.std()) > 0.1


@pytest.mark.parametrize("maps", ("diagonal", "orthogonal", "identity"))
def test_a_recorded_epoch_on_a_graph_does_what_the_epoch_does(maps, monkeypatch):
    from suffuse_graphs import NeuralSheafDiffusion
    from suffuse_graphs.classify import train_classifier
    from suffuse_graphs.data.nodes import load_nodes

    data = load_nodes("karate")

    def train():
        torch.manual_seed(0)
        classes = int(data.y.max()) + 1
        model = NeuralSheafDiffusion(data.num_features, 12, 2, classes, stalk_dim=3, maps=maps)
        result = train_classifier(model, data, epochs=12, device=DEVICE)
        return [result.val, *(p.detach().cpu() for p in result.model.parameters())]

    recorded = train()
    monkeypatch.setattr(NeuralSheafDiffusion, "recordable", False)
    for one, other in zip(recorded, train(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
