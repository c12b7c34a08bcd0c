"""Robots, rollouts and pictures."""

from __future__ import annotations

import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_rl_planning import envs, render
from suffuse_rl_planning.collect import RandomPolicy

ROBOTS = tuple(envs.ROBOTS)


@pytest.fixture(scope="module")
def run():
    return envs.rollout(RandomPolicy(6), env_id="HalfCheetah-v5", n=3, steps=20, seed=5)


def test_measured_speed_is_displacement_over_time(run):
    displacement = run.qpos[:, 20, 0] - run.qpos[:, 5, 0]
    np.testing.assert_allclose(run.behaviour("speed", 5, 20), displacement / (15 * run.dt), rtol=1e-10)


@pytest.mark.parametrize("env_id", ROBOTS)
def test_observations_are_read_as_the_simulator_means_them(env_id):
    """Speed, height and joint velocities from the observation agree with the simulator's own."""
    robot = envs.robot(env_id)
    venv = envs.make_vec(env_id, 1)
    venv.reset(seed=0)
    observation, *_ = venv.step(np.full((1, robot.joints), 0.1, np.float32))
    data, model = venv.envs[0].unwrapped.data, venv.envs[0].unwrapped.model
    import mujoco

    mujoco.mj_forward(model, data)  # body positions lag behind the state by one substep
    assert observation.shape == (1, robot.observation_dim)
    assert robot.forward_velocity(observation)[0] == pytest.approx(data.qvel[0])
    assert robot.height(observation)[0] == pytest.approx(data.body("torso").xpos[2], abs=1e-3)
    driven = model.actuator_trnid[:, 0]  # joints in the order of the motors
    np.testing.assert_allclose(robot.joint_rates(observation)[0], data.qvel[model.jnt_dofadr[driven]])
    np.testing.assert_allclose(robot.angles(observation)[0], data.qpos[model.jnt_qposadr[driven]])
    np.testing.assert_allclose(robot.gear, model.actuator_gear[:, 0] * model.actuator_ctrlrange[:, 1])
    for leg, name in ((robot.left, "left"), (robot.right, "right")):
        named = [model.joint(driven[i]).name for i in leg]
        assert env_id != "Humanoid-v5" or all(joint.startswith(name) for joint in named)
    assert (robot.options or env_id != "Walker2d-v5") and venv.single_action_space.low.min() == -1
    venv.close()


def test_power_is_torque_times_joint_rate(run):
    robot = envs.robot(run.env_id)
    torque = np.asarray(robot.gear) * run.actions[0, 3]
    assert run.series()["energy"][0, 3] == pytest.approx(np.abs(torque * run.qvel[0, 4, 3:]).sum(), rel=1e-5)


def test_a_stored_state_replays_the_same_motion(run):
    """State resets are complete: the same actions from a stored state give the same states again."""
    venv = envs.make_vec(run.env_id, 3)
    venv.reset(seed=0)
    observation = envs.set_states(venv, run.qpos[:, 10], run.qvel[:, 10])
    np.testing.assert_allclose(observation, run.observations[:, 10])
    for t in range(10, 14):
        observation, *_ = venv.step(run.actions[:, t])
    # MuJoCo's contact solver starts from its last solution, which is not part of the state: equal up to its tolerance
    np.testing.assert_allclose(observation, run.observations[:, 14], atol=1e-3)
    venv.close()


def test_environment_i_does_not_depend_on_its_neighbours():
    still = lambda n: envs.rollout(_Still(6), env_id="HalfCheetah-v5", n=n, steps=5, seed=7)  # noqa: E731
    np.testing.assert_array_equal(still(3).observations[1], still(2).observations[1])


def test_an_episode_ends_where_the_robot_falls():
    run = envs.rollout(RandomPolicy(3), env_id="Hopper-v5", n=4, steps=400, seed=0)
    assert run.terminated.all() and (run.length < 400).all()
    last = run.observations[0, run.length[0]]
    assert envs.robot("Hopper-v5").fallen(last)  # the state that fell, not the one after the reset


@pytest.mark.parametrize("backend", ["stick", "gl"])
def test_rendering_draws_a_moving_robot_or_says_what_to_install(run, backend):
    try:
        pictures, used = render.frames(run.env_id, run.qpos[0, [0, 20]], backend=backend, width=120, height=60)
    except render.NoRenderer as error:
        assert "apt-get install" in str(error)
        pytest.skip(f"no OpenGL: {error}")
    assert used == backend and len(pictures) == 2
    assert pictures[0].shape == (60, 120, 3) and pictures[0].dtype == np.uint8
    assert (pictures[0] != pictures[1]).any() and pictures[0].std() > 5


def test_a_machine_without_opengl_gets_stick_figures(run, monkeypatch):
    def fail(*_: object):
        raise render.NoRenderer("no context; " + render.INSTALL)

    monkeypatch.setattr(render, "_gl", fail)
    assert render.frames(run.env_id, run.qpos[0, :1])[1] == "stick"
    with pytest.raises(render.NoRenderer, match="libegl1"):
        render.frames(run.env_id, run.qpos[0, :1], backend="gl")


def test_capsules_are_where_the_simulator_has_them(run):
    ends, radii, bodies = render.capsules(run.env_id, run.qpos[0, :2])
    assert ends.shape == (2, len(radii), 2, 2) and set(bodies) >= {"torso", "bfoot", "ffoot"}
    assert ends[..., 1].min() > -0.1  # nothing is far below the floor


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: envs.make("HalfCheeta-v5"), "unknown environment 'HalfCheeta-v5'; did you mean 'HalfCheetah-v5'"),
        (lambda: envs.make_vec("HalfCheetah-v5", 0), "n must be at least 1"),
        (lambda: envs.rollout(RandomPolicy(6), env_id="HalfCheetah-v5", n=1, steps=0), "steps must be at least 1"),
        (lambda: render.frames("HalfCheetah-v5", np.full((2, 9), np.nan)), "qpos must be finite"),
        (lambda: render.frames("HalfCheetah-v5", np.zeros((1, 9)), backend="egl"), "unknown backend"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidArgument, match=message.replace("(", r"\(")):
        call()


class _Still:
    def __init__(self, joints: int) -> None:
        self.joints = joints

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.zeros((len(observation), self.joints)), None
