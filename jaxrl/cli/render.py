"""`jaxrl render`: one episode of a run to look at; a page with Brax's viewer, or a GIF."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxrl.cli import options, resuming, runs, training
from jaxrl.cli.errors import UsageError, one_line

FRAMES = 30  # of a GIF, in a second, at most
DRAWN = ("Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")  # by Gymnasium
SHOWN = (  # what gymnax draws by itself
    *("Catch-bsuite", "PointRobot-misc", "FourRooms-misc", "MetaMaze-misc", "Pong-misc"),
    *(f"{game}-MinAtar" for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")),
)


@dataclasses.dataclass(frozen=True)
class Render:
    """Show an episode of a run: a page with Brax's viewer for Brax, a GIF for Playground and gymnax."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # its directory
    step: str = "newest"  # which checkpoint: newest, best, or a number of transitions
    policy: str = "best"  # of which seed: a number, or best for the one with the highest score
    seed: int = 0  # of the start and of noise
    steps: int = 300  # how many, unless the episode ends before
    sampled: bool = False  # actions are samples of the policy, not its mode
    out: Path | None = None  # None: RUN/render.html, or RUN/render.gif


def run(arguments: list[str]) -> None:
    """Run one episode, draw it, and say where."""
    asked = options.parse(Render, arguments, "render")
    if asked.steps < 1:
        raise UsageError(f"--steps must be at least 1, got {asked.steps}")
    found = runs.find(asked.run)
    _, begun = resuming.again(found)
    suite, _, name = begun.environment.partition("/")
    suffix = _suffix(suite, name)
    path = asked.out or found.path / f"render{suffix}"
    if path.suffix != suffix:
        raise UsageError(f"{begun.environment} is shown as {suffix}, got --out {path}")
    env = training.environment(begun)
    states, rewards = episode(env, _policy(found, asked), asked)
    draw = {"brax": _viewer, "playground": _physics, "gymnax": _gymnax}[suite]
    with runs.whole(path) as file:
        draw(file, env, states, rewards)
    print(f"wrote {path}: {len(rewards)} steps, return {rewards.sum():.6g}")


def _suffix(suite: str, name: str) -> Literal[".html", ".gif"]:
    """What an environment is shown as. Raises ValueError if nothing draws it."""
    if suite == "jaxrl":
        raise ValueError("jaxrl's own environments have no picture; jaxrl plot and jaxrl report show their numbers")
    if name == "fast":
        raise ValueError("brax/fast has no bodies, and no picture")
    if suite == "gymnax" and name not in DRAWN + SHOWN:
        raise ValueError(f"gymnax does not draw {name}; it does {', '.join(sorted(DRAWN + SHOWN))}")
    return ".html" if suite == "brax" else ".gif"


def _policy(found: runs.Run, asked: Render) -> Any:
    from jaxrl import checkpoint

    seeds = found.settings["seeds"]
    if asked.policy != "best" and not asked.policy.isdecimal():
        raise UsageError(f"--policy is a number below {seeds} or best, got {asked.policy!r}")
    step: Any = int(asked.step) if asked.step.isdecimal() else None if asked.step == "newest" else asked.step
    seed: Any = int(asked.policy) if asked.policy.isdecimal() else "best"
    try:
        return checkpoint.load_policy(found.path, step=step, seed=seed)
    except checkpoint.CheckpointError as error:
        if seed != "best" or "no scores" not in str(error):
            raise
        return checkpoint.load_policy(found.path, step=step, seed=0)  # it was never evaluated


def episode(env: Any, policy: Any, asked: Render) -> tuple[Any, np.ndarray]:
    """The states [T + 1, ...] and the rewards [T] of one episode, up to its end."""
    import jax
    import jax.numpy as jnp

    start, key = jax.random.split(jax.random.key(asked.seed))
    steps = min(asked.steps, env.max_steps)
    params = env.params()

    def body(carry: Any, key: jax.Array) -> Any:
        state, observation, ended = carry
        act, step_key = jax.random.split(key)
        action = env.spec.action.clip(policy(observation, act if asked.sampled else None))
        after, step = env.step(params, state, action, step_key)
        return (after, step.observation, ended | step.terminated | step.truncated), (after, step.reward, ended)

    @jax.jit
    def rollout(start: jax.Array, key: jax.Array) -> Any:
        state, observation = env.reset(params, start)
        _, (states, rewards, over) = jax.lax.scan(
            body, (state, observation, jnp.zeros((), bool)), jax.random.split(key, steps)
        )
        return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, states), rewards, over

    states, rewards, over = rollout(start, key)
    length = int(np.sum(~np.asarray(over)))
    return jax.tree.map(lambda leaf: leaf[: length + 1], states), np.asarray(rewards)[:length]


def _viewer(path: Path, env: Any, states: Any, rewards: np.ndarray) -> None:
    """A page with Brax's viewer, which the browser loads from the network."""
    import types

    import jax

    from jaxrl.envs.physics import quiet

    with quiet():
        from brax.io import html
    poses = jax.tree.map(np.asarray, states.pipeline_state.x)
    frames: list[Any] = [
        types.SimpleNamespace(x=jax.tree.map(lambda leaf, i=i: leaf[i], poses)) for i in range(len(rewards) + 1)
    ]
    page = html.render(env.env.sys, frames, height="100vh", colab=False)
    path.write_text(page.replace("<title>Brax visualizer", "<meta charset='utf-8'><title>Brax"), encoding="utf-8")


def _physics(path: Path, env: Any, states: Any, rewards: np.ndarray) -> None:
    """A GIF by MuJoCo's renderer, which needs a display or an off-screen OpenGL."""
    import jax

    from jaxrl.envs.physics import no_warnings

    stride = max(1, round(1 / FRAMES / env.env.dt))
    frames = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(0, len(rewards) + 1, stride)]
    try:
        with no_warnings(), contextlib.redirect_stderr(io.StringIO()):  # of GLFW; Playground draws a bar
            images = env.env.render(frames, height=240, width=320)
    except Exception as error:  # of GLFW, EGL, OSMesa or MuJoCo, of any type
        backend = os.environ.get("MUJOCO_GL")
        hint = f"not with MUJOCO_GL={backend}" if backend else "MUJOCO_GL=egl may, without a display"
        raise ValueError(f"MuJoCo can't draw here ({one_line(error)}): it needs OpenGL, {hint}") from error
    _gif(path, images, env.env.dt * stride)


def _gymnax(path: Path, env: Any, states: Any, rewards: np.ndarray) -> None:
    """A GIF by gymnax's visualiser: its own drawings, or Gymnasium's."""
    import jax

    name = env.env.name
    frames = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(len(rewards) + 1)]
    if name in DRAWN:
        _gif(path, _classic(name, frames, env.params()), 0.05)
        return
    import matplotlib

    matplotlib.use("agg")  # gymnax draws by pyplot
    from gymnax.visualize.visualizer import Visualizer

    returns = np.concatenate([[0.0], np.cumsum(rewards)])
    Visualizer(env.env, env.params(), frames, returns).animate(str(path))


def _classic(name: str, frames: Sequence[Any], params: Any) -> list[np.ndarray]:
    from gymnax.visualize import vis_gym

    try:
        return [vis_gym.render_gym_frame(name, frame, params) for frame in frames]
    except Exception as error:  # Gymnasium has a type of its own
        if "pygame" not in str(error):
            raise
        raise ImportError(f"Gymnasium draws {name} with pygame: pip install 'gymnasium[classic-control]'") from error


def _gif(path: Path, images: Sequence[np.ndarray], seconds: float) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(np.asarray(image)) for image in images)
    first.save(path, save_all=True, append_images=rest, duration=max(20, round(1000 * seconds)), loop=0)
