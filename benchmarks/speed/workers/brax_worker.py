"""Brax's own PPO and SAC as the suite's peer, on the last JAX on which they run; `benchmarks/peers/setup brax`.

`train` of Brax is one loop on the host. The suite gets in between its epochs, through the callbacks that it calls after
each of them. Where training is measured, Brax's evaluator, which it runs between epochs, is left out.
"""

import functools
import itertools

from protocol import main

PACKAGES = ("brax", "jax", "jaxlib", "flax", "optax")
EPOCHS = 10_000  # more than will ever be asked for


def environment(task):
    from brax import envs

    return envs.get_environment(task["env"].partition("/")[2], backend="spring")


def ppo(task, env, iterations, **callbacks):
    """Train without end, in epochs of so many iterations."""
    import jax
    from brax.training.agents.ppo import networks
    from brax.training.agents.ppo import train as ppo

    sizes = tuple(task["hidden"])
    factory = functools.partial(
        networks.make_ppo_networks,
        policy_hidden_layer_sizes=sizes,
        value_hidden_layer_sizes=sizes,
        activation=jax.numpy.tanh,
    )
    ppo.train(
        environment=env,
        num_timesteps=EPOCHS * iterations * task["units"],
        num_evals=EPOCHS + 1,
        num_envs=task["num_envs"],
        episode_length=1000,
        unroll_length=task["length"],
        batch_size=task["num_envs"] // task["minibatches"],  # trajectories, of `unroll_length` steps each
        num_minibatches=task["minibatches"],
        num_updates_per_batch=task["epochs"],
        learning_rate=task["learning_rate"],
        max_grad_norm=0.5,
        clipping_epsilon=0.2,
        discounting=0.99,
        normalize_observations=task["normalise"],
        network_factory=factory,
        max_devices_per_host=1,
        run_evals=False,
        **callbacks,
    )


def sac(task, env, iterations, progress_fn):
    """Train without end, in epochs of so many iterations."""
    from brax.training.agents.sac import networks
    from brax.training.agents.sac import train as sac

    warmup = 0 if task["full"] else task["warmup"]
    sac.train(
        environment=env,
        num_timesteps=warmup + EPOCHS * iterations,
        num_evals=EPOCHS + 1,
        num_envs=1,
        num_eval_envs=1,
        episode_length=1000,
        batch_size=256,
        min_replay_size=warmup,
        max_replay_size=task["capacity"],
        grad_updates_per_step=task["updates"],
        learning_rate=task["learning_rate"],
        discounting=0.99,
        normalize_observations=task["normalise"],
        network_factory=functools.partial(networks.make_sac_networks, hidden_layer_sizes=tuple(task["hidden"])),
        max_devices_per_host=1,
        progress_fn=progress_fn,
    )


class NoEvaluator:
    """Takes the place of Brax's."""

    def __init__(self, *arguments, **settings):
        pass

    def run_evaluation(self, params, training_metrics):
        return training_metrics


def born_full():
    """Brax's replays hold as much as they can from the beginning, of noise."""
    import jax
    from brax.training import replay_buffers

    empty = replay_buffers.UniformSamplingQueue.init

    def init(self, key):
        state = empty(self, key)
        noise = jax.random.normal(jax.random.fold_in(key, 1), state.data.shape)
        return state.replace(data=noise, insert_position=jax.numpy.int32(len(state.data)))

    replay_buffers.UniformSamplingQueue.init = init


def train(suite):
    from brax.training import acting

    task, calls = suite.task, itertools.count()
    acting.Evaluator = NoEvaluator
    if task.get("full"):
        born_full()

    def between(*_, **__):
        """Called before the first epoch and after each; the first two may compile."""
        call = next(calls)
        if call == 2:
            suite.ready(*PACKAGES)
        elif call > 2:
            suite.answer(task["iterations"] * task["units"])
        if call >= 2:
            suite.wait()

    if task["algorithm"] == "ppo":
        ppo(task, environment(task), task["iterations"], policy_params_fn=between)
    else:
        sac(task, environment(task), task["iterations"], progress_fn=between)


def imported(suite):
    from brax import envs  # noqa: F401
    from brax.training.agents.ppo import train  # noqa: F401

    suite.phase("imported")
    suite.finish(*PACKAGES)


def reset(suite):
    import jax
    from brax import envs  # noqa: F401

    suite.phase("imported")
    env = environment(suite.task)
    suite.phase("constructed")
    jax.block_until_ready(jax.jit(env.reset)(jax.random.PRNGKey(0)))
    suite.phase("reset")
    suite.finish(*PACKAGES)


def start(suite):
    """To the first update, with all that Brax compiles until then."""
    from brax import envs  # noqa: F401
    from brax.training.agents.ppo import train  # noqa: F401

    suite.phase("imported")
    env = environment(suite.task)
    suite.phase("constructed")

    def between(step, *_):
        if step:
            suite.phase("first update")
            suite.finish(*PACKAGES)
            raise SystemExit

    ppo(suite.task, env, 1, policy_params_fn=between)


if __name__ == "__main__":
    main({"train": train, "import": imported, "reset": reset, "start": start})
