"""Pictures of motion, replayed from stored states: MuJoCo's renderer where OpenGL works, stick figures elsewhere.

A stick figure is the robot's capsules, projected on the x-z plane in which it moves; it needs no graphics library
beside matplotlib. Debian and Ubuntu bring OpenGL without a display by ``libegl1 libegl-mesa0 libgl1-mesa-dri``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from suffuse.errors import InvalidArgument, SuffuseError, unknown

from .envs import Array, make, quiet_model_loading

BACKENDS = ("auto", "gl", "stick")
INSTALL = "apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri, and set MUJOCO_GL=egl before mujoco is imported"
VIEW = (3.2, 1.6)  # metres seen around the torso
BACK, FRONT, BODY = "#c8553d", "#2f6690", "#3b3b3b"


class NoRenderer(SuffuseError, RuntimeError):
    """MuJoCo cannot draw on this machine; the message says what to install."""


def frames(
    env_id: str, qpos: Array, *, backend: str = "auto", width: int = 320, height: int = 160
) -> tuple[list[Array], str]:
    """Draw a motion.

    Args:
        env_id: the robot.
        qpos: (T, nq) generalised positions, one picture each.
        backend: "gl" (MuJoCo), "stick" (matplotlib), or "auto": MuJoCo if it can draw here.
        width, height: of a picture, in pixels.

    Returns:
        T pictures (height, width, 3) uint8, and the backend that drew them.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    qpos = np.asarray(qpos, dtype=float)
    if qpos.ndim != 2 or not np.isfinite(qpos).all():
        raise InvalidArgument(f"qpos must be finite and (T, nq), got shape {qpos.shape}")
    if backend != "stick":
        try:
            return _gl(env_id, qpos, width, height), "gl"
        except NoRenderer:
            if backend == "gl":
                raise
    return _stick(env_id, qpos, width, height), "stick"


PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


@functools.cache
def why_not_gl() -> str:
    """Empty if MuJoCo can draw in this process, else the reason.

    Tried in a process of its own: a failed OpenGL context can end the process, at the latest at the second attempt.
    """
    with quiet_model_loading():
        from mujoco.rendering.classic import gl_context
    context = getattr(gl_context, "GLContext", None)
    if context is None:
        return "MUJOCO_GL switches it off"
    chosen = context.__module__.rpartition(".")[2]  # egl, glfw, osmesa, …, as mujoco was imported
    try:
        with tempfile.TemporaryDirectory() as folder:  # where MuJoCo leaves its log of the failure
            probe = subprocess.run(
                [sys.executable, "-c", PROBE],
                env={**os.environ, "MUJOCO_GL": chosen},
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=60,
            )
    except subprocess.TimeoutExpired:
        return f"{chosen}: no answer in a minute"
    if probe.returncode == 0:
        return ""
    return f"{chosen}: {(probe.stderr.strip().splitlines() or ['no message'])[-1]}"


def _gl(env_id: str, qpos: Array, width: int, height: int) -> list[Array]:
    if reason := why_not_gl():
        raise NoRenderer(f"MuJoCo cannot open an OpenGL context ({reason}); {INSTALL}")
    env = make(env_id)
    try:
        import mujoco

        model, data = env.unwrapped.model, env.unwrapped.data
        renderer = mujoco.Renderer(model, height, width)
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.distance, camera.azimuth, camera.elevation = 2.3, 90.0, -8.0
        pictures = []
        with contextlib.closing(renderer):
            for position in qpos:
                data.qpos[:] = position
                mujoco.mj_forward(model, data)
                camera.lookat[:] = [data.body("torso").xpos[0], 0.0, 0.5]
                renderer.update_scene(data, camera)
                pictures.append(renderer.render().copy())
        return pictures
    finally:
        env.close()


def capsules(env_id: str, qpos: Array) -> tuple[Array, Array, list[str]]:
    """The robot's capsules in the plane of motion.

    Args:
        qpos: (T, nq).

    Returns:
        end points (T, G, 2 ends, xz) in m, radii (G,) in m, and the names of the bodies they belong to.
    """
    env = make(env_id)
    try:
        import mujoco

        model, data = env.unwrapped.model, env.unwrapped.data
        chosen = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE)
        half = model.geom_size[chosen, 1]
        ends = []
        for position in qpos:
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            centre = data.geom_xpos[chosen]
            axis = data.geom_xmat[chosen].reshape(-1, 3, 3)[:, :, 2] * half[:, None]
            ends.append(np.stack([centre - axis, centre + axis], 1)[..., [0, 2]])
        bodies = [model.body(int(model.geom_bodyid[g])).name for g in chosen]
        return np.stack(ends), model.geom_size[chosen, 0].copy(), bodies
    finally:
        env.close()


def draw(axes: Any, ends: Array, radii: Array, bodies: Sequence[str], *, alpha: float = 1.0) -> None:
    """Draw capsules (G, 2, xz) into matplotlib axes whose unit is the metre; far legs first, torso last."""
    per_metre = axes.get_window_extent().width / np.diff(axes.get_xlim())[0] * 72 / axes.figure.dpi
    order = sorted(range(len(bodies)), key=lambda g: bodies[g] == "torso")
    for g in order:
        left = "left" in bodies[g] or bodies[g].startswith("b")
        colour = BODY if bodies[g] == "torso" else BACK if left else FRONT
        x, z = ends[g].T
        axes.plot(x, z, color=colour, lw=2 * radii[g] * per_metre, solid_capstyle="round", alpha=alpha)


def ground(axes: Any, x: float) -> None:
    """Floor with a mark every half metre, seen from the side around x; hides the frame."""
    axes.set(xlim=(x - VIEW[0] / 2, x + VIEW[0] / 2), ylim=(-0.2, VIEW[1] - 0.2))
    axes.axhspan(-1, 0, color="#e8e4da", zorder=0)
    marks = np.arange(np.floor(x - 2) - 1, np.ceil(x + 2) + 1, 0.5)
    axes.vlines(marks, -0.12, 0, color="#b0a890", lw=1, zorder=1)
    for mark in marks[marks % 1 == 0]:
        if abs(mark - x) < VIEW[0] / 2 - 0.15:
            axes.text(mark, -0.17, f"{mark:.0f} m", fontsize=6, ha="center", color="#8a826a")
    axes.set_axis_off()


def _stick(env_id: str, qpos: Array, width: int, height: int) -> list[Array]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ends, radii, bodies = capsules(env_id, qpos)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    pictures = []
    for at, position in zip(ends, qpos, strict=True):
        axes.clear()
        ground(axes, float(position[0]))
        draw(axes, at, radii, bodies)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pictures


def label(picture: Array, text: str) -> Array:
    """Write a line of text on a dark strip above a picture."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + 22), "#22262b")
    image.paste(Image.fromarray(picture), (0, 22))
    ImageDraw.Draw(image).text((6, 4), text, fill="white", font=ImageFont.load_default(13))
    return np.asarray(image)


def write_gif(path: Path | str, pictures: Sequence[Array], *, fps: float = 20.0) -> Path:
    """Write pictures (T of (H, W, 3) uint8) as a looping GIF."""
    from PIL import Image

    if not len(pictures):
        raise InvalidArgument("pictures is empty; nothing to write")
    images = [Image.fromarray(p).quantize(64, dither=Image.Dither.NONE) for p in pictures]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, optimize=True)
    return Path(path)
