"""jaxrl in the suite: the program that `train.fit` runs, its parts alone, and whole processes.

Seeds are shared among the host's devices, one for each core, as `fit` does where there are several.
"""

import concurrent.futures

import floors
from ours import PACKAGES, devices, keys, program
from protocol import main


def train(suite):
    import jax

    task = suite.task
    devices(task)
    made = program(task)
    run = made.init(made.config, keys(task), None)
    if task.get("full"):
        run = jax.jit(filled, donate_argnums=0)(run)

    def advance(n):
        nonlocal run
        run, _ = jax.block_until_ready(made.chunk(made.config, run, n))

    if "warmup" in task:
        advance(2 if task["full"] else task["warmup"] + 2)
    suite.chunks(advance, task["units"], *PACKAGES)


def filled(run):
    """The run with a full replay, of one long episode of noise, and without a warm-up."""
    import jax
    import jax.numpy as jnp

    buffer = run.experience.buffer
    length = buffer.steps.reward.shape[1]  # behind the seeds
    observation, action, reward = (
        jax.random.uniform(jax.random.key(i), leaf.shape, leaf.dtype, -1, 1)
        for i, leaf in enumerate((buffer.observation, buffer.steps.action, buffer.steps.reward))
    )
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[:, None], buffer.steps.place.shape)
    last = jnp.full_like(buffer.place, length - 1)
    buffer = buffer.replace(
        observation=observation,
        steps=buffer.steps.replace(action=action, reward=reward, place=place),
        row=jnp.full_like(buffer.row, length - 1),
        place=last,
        size=last,
        used=last,
        unfinished=last,
    )
    return run.replace(experience=run.experience.replace(buffer=buffer, warmup=jnp.zeros_like(run.experience.warmup)))


# ---------------------------------------------------------------------------- whole processes


def imported(suite):
    from jaxrl import envs, train  # noqa: F401
    from jaxrl.agents import ppo  # noqa: F401

    suite.phase("imported")
    suite.finish(*PACKAGES)


def reset(suite):
    import jax

    from jaxrl import envs

    suite.phase("imported")
    env = envs.make(suite.task["env"])
    suite.phase("constructed")
    jax.block_until_ready(jax.jit(env.reset)(env.params(), jax.random.key(0)))
    suite.phase("reset")
    suite.finish(*PACKAGES)


def start(suite):
    """To the first update; and, if the task has a return at which it is solved, on to there."""
    import jax

    from jaxrl import envs, evaluate, train  # noqa: F401
    from jaxrl.agents import ppo  # noqa: F401

    suite.phase("imported")
    task = suite.task
    made = program(task)
    suite.phase("constructed")
    run = made.init(made.config, keys(task), None)
    evaluate_key = jax.random.key(1)

    @jax.jit
    def mean_return(state, key):
        state = jax.tree.map(lambda leaf: leaf[0], state)
        played = evaluate.evaluate(
            made.agent, made.config, state, made.env, key, episodes=task["episodes"], greedy=False
        )
        return played.returns.mean()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # `fit` too compiles its evaluation beside the rest
        compiled = thread.submit(mean_return.lower(run.agent, evaluate_key).compile) if "solved" in task else None
        run, _ = jax.block_until_ready(made.chunk(made.config, run, 1))
        suite.phase("first update")
    updates = 1
    while "solved" in task and "solved" not in suite.phases and updates * task["units"] < task["steps"]:
        run, _ = made.chunk(made.config, run, task["every"])
        updates += task["every"]
        if compiled.result()(run.agent, evaluate_key) >= task["solved"]:
            suite.phase("solved")
    suite.finish(*PACKAGES, steps=updates * task["units"])


if __name__ == "__main__":
    main(
        {
            "train": train,
            "environment": lambda suite: floors.floor(suite, floors.environment),
            "gradients": lambda suite: floors.floor(suite, floors.gradients),
            "import": imported,
            "reset": reset,
            "start": start,
        }
    )
