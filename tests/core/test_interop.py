"""diffusers in both directions, on tiny offline models."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from suffuse import Condition  # noqa: E402
from suffuse.errors import InvalidArgument  # noqa: E402
from suffuse.guidance import ClassifierFree  # noqa: E402
from suffuse.interop.diffusers import DiffusersDenoiser, SuffuseScheduler, schedule_of  # noqa: E402
from suffuse.samplers import DDIM, DDPM, SAMPLERS, by_name  # noqa: E402
from suffuse.schedules import DiscreteBetas, RectifiedFlow  # noqa: E402


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_model_means_what_its_scheduler_says(unet, prediction_type):
    """The posterior mean at an integer timestep is the scheduler's predicted original sample."""
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    denoiser = DiffusersDenoiser(unet, scheduler)
    x, k = torch.randn(2, 1, 8, 8), 499
    with torch.no_grad():
        scheduler.set_timesteps(1000)
        expected = scheduler.step(unet(x, k).sample, k, x).pred_original_sample
        torch.testing.assert_close(denoiser(x, (k + 1) / 1000), expected, rtol=1e-3, atol=1e-4)
        each = denoiser(x, torch.tensor([(k + 1) / 1000, 0.9], dtype=torch.float64))
        torch.testing.assert_close(each[:1], expected[:1], rtol=1e-3, atol=1e-4)


def test_ddim_on_a_model_is_diffusers_ddim(unet):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    x = torch.randn(2, 1, 8, 8)
    times = [(int(k) + 1) / 1000 for k in scheduler.timesteps]
    ours = DDIM(grid=times)(DiffusersDenoiser(unet, scheduler), x=x, start=times[0])
    with torch.no_grad():
        for k in scheduler.timesteps:
            x = scheduler.step(unet(x, k).sample, k, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_tokens_become_encoder_hidden_states_and_can_be_guided():
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6, attention_head_dim=8,
    ).eval()  # fmt: skip
    denoiser = DiffusersDenoiser(model, diffusers.DDPMScheduler(beta_schedule="scaled_linear"))
    cond = Condition(tokens={"text": torch.randn(2, 3, 6)}, nulls={"text": torch.zeros(3, 6)})
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        guided = ClassifierFree(denoiser, 3.0)(x, 0.5, cond)
        c = denoiser(x, 0.5, cond)
        u = denoiser(x, 0.5, Condition(tokens={"text": torch.zeros(2, 3, 6)}))
    torch.testing.assert_close(guided, u + 3 * (c - u), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_in_a_pipeline_and_gives_our_own_samples(unet, sampler):
    """A pipeline with our scheduler draws what our loop draws from the same noise."""
    options = {"prediction_type": "v_prediction"}
    scheduler = SuffuseScheduler(sampler=sampler, **options)
    pipe = diffusers.DDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np"
    ).images  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    denoiser = DiffusersDenoiser(unet, scheduler)
    ours = by_name(sampler, steps=4, grid="logsnr")(denoiser, x=x, generator=generator)
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.as_tensor(images), ours, rtol=1e-2, atol=2e-3)


@pytest.fixture(scope="module")
def wide():
    """A model that also learned a variance."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def test_a_learned_variance_is_that_of_diffusers(wide):
    """One ancestral step of the thousand, from the same noise."""
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    x, k = torch.randn(2, 1, 8, 8), 499
    with torch.no_grad():
        expected = scheduler.step(wide(x, k).sample, k, x, generator=torch.Generator().manual_seed(0)).prev_sample
    denoiser = DiffusersDenoiser(wide, scheduler)
    t, s = (k + 1) / 1000, k / 1000
    ours = DDPM(1, "time", variance="learned")(
        denoiser, x=x, start=t, stop=s, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    mean, _ = denoiser.with_variance(x, t)
    torch.testing.assert_close(denoiser(x, t), mean)


def test_a_pipeline_samples_with_a_learned_variance(wide):
    scheduler = SuffuseScheduler(sampler="ddpm", sampler_options={"variance": "learned"})
    scheduler.set_timesteps(4)
    generator, x = torch.Generator().manual_seed(0), torch.randn(2, 1, 8, 8)
    denoiser = DiffusersDenoiser(wide, diffusers.DDPMScheduler(variance_type="learned_range"))
    ours = DDPM(4, variance="learned")(denoiser, x=x, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for k in scheduler.timesteps:
            x = scheduler.step(wide(x, k).sample, k, x, generator=generator).prev_sample
    torch.testing.assert_close(x, ours, rtol=1e-3, atol=1e-3)


def test_channels_that_do_not_fit_are_an_error(unet, wide):
    class Odd(torch.nn.Module):
        def forward(self, x, timestep):
            return type("Output", (), {"sample": x.repeat(1, 3, 1, 1)})

    x = torch.randn(1, 1, 8, 8)
    for model, variance_type, message in (
        (Odd(), "fixed_small", "returned 3 channels for 1"),
        (unet, "learned_range", "needs a model with 2 output channels, this has 1"),
    ):
        denoiser = DiffusersDenoiser(model, diffusers.DDPMScheduler(variance_type=variance_type))
        with pytest.raises(InvalidArgument, match=message):
            denoiser(x, 0.5)
    for variance_type in ("fixed_small", "learned"):
        denoiser = DiffusersDenoiser(wide, diffusers.DDPMScheduler(variance_type=variance_type))
        assert denoiser(x, 0.5).shape == x.shape
        with pytest.raises(InvalidArgument, match=f"variance_type is '{variance_type}'"):
            denoiser.with_variance(x, 0.5)


def test_the_scheduler_survives_saving_and_reads_other_configurations(tmp_path):
    theirs = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = SuffuseScheduler.from_config(theirs.config, sampler="unipc-2", sampler_options={"order": 3})
    ours.save_pretrained(tmp_path)
    again = SuffuseScheduler.from_pretrained(tmp_path)
    assert again.config.sampler == "unipc-2"
    assert again.config.sampler_options == {"order": 3}
    assert again.schedule == DiscreteBetas.scaled_linear()
    assert len(again) == 1000


def test_image_to_image_starts_later():
    scheduler = SuffuseScheduler(sampler="dpmpp-2m")
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    x = torch.randn(1, 1, 4, 4)
    noisy = scheduler.add_noise(x, torch.zeros_like(x), scheduler.timesteps[4:5])
    assert float(noisy.norm()) == pytest.approx(
        float(x.norm()) * scheduler.schedule.alpha((float(scheduler.timesteps[4]) + 1) / 1000), rel=1e-4
    )
    for k in scheduler.timesteps[4:]:
        noisy = scheduler.step(torch.zeros_like(noisy), k, noisy).prev_sample
    assert torch.isfinite(noisy).all()
    assert scheduler.step_index == 10


def test_flow_models_keep_the_sign_of_diffusers():
    """diffusers' flow models predict eps - x0 at timestep 1000 sigma."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = schedule_of(scheduler)
    assert schedule == RectifiedFlow(3.0)
    x0, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)

    class Flow(torch.nn.Module):
        def forward(self, x, timestep):
            torch.testing.assert_close(timestep, torch.full((2,), 1000 * schedule.sigma(0.4), dtype=torch.float32))
            return type("Output", (), {"sample": noise - x0})

    denoiser = DiffusersDenoiser(Flow(), scheduler)
    torch.testing.assert_close(denoiser(schedule.add_noise(x0, 0.4, noise), 0.4), x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SuffuseScheduler(sampler="dpm"), "unknown sampler"),
        (lambda: SuffuseScheduler(beta_schedule="sigmoid"), "beta_schedule='sigmoid'"),
        (lambda: SuffuseScheduler().set_timesteps(5, timesteps=[3, 2, 1]), "cannot be set"),
        (lambda: schedule_of({"beta_schedule": "linear", "rescale_betas_zero_snr": True}), "rescale_betas_zero_snr"),
        (lambda: schedule_of({"shift": 3.0, "use_dynamic_shifting": True}), "use_dynamic_shifting"),
        (lambda: DiffusersDenoiser(torch.nn.Identity(), {"beta_schedule": "linear"}, "eps"), "prediction_type must be"),
    ],
)
def test_bad_arguments_say_what_is_wrong(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_class_labels_are_indices_with_one_for_no_class():
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=4,
    ).eval()  # fmt: skip
    denoiser = DiffusersDenoiser(model, diffusers.DDPMScheduler(prediction_type="sample"))
    labels = {"class_labels": torch.tensor([1.0, 2.0]).reshape(2, 1, 1)}
    cond = Condition(tokens=labels, nulls={"class_labels": torch.tensor([[3.0]])})
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for asked, index in ((cond, [1, 2]), (cond.null(), [3, 3])):
            expected = model(x, torch.tensor([499.0, 499.0]), class_labels=torch.tensor(index)).sample
            torch.testing.assert_close(denoiser(x, 0.5, asked), expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(InvalidArgument, match="null value for class_labels"):
            denoiser(x, 0.5, Condition(tokens=labels))
