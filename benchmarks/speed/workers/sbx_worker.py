"""sbx 0.28.0 as the suite's peer: one seed in gymnasium's environments; `benchmarks/peers/setup sbx`."""

import warnings

from protocol import main

PACKAGES = ("sbx-rl", "stable-baselines3", "gymnasium", "torch", "jax", "jaxlib", "flax", "optax")


def model(task):
    """The algorithm, and how many of its environment steps are one iteration of the suite."""
    from sbx import PPO, SAC, TQC
    from stable_baselines3.common.env_util import make_vec_env

    name = task["env"].partition("/")[2]
    policy = {"net_arch": list(task["hidden"])}
    if task["algorithm"] == "ppo":
        steps = task["num_envs"] * task["length"]
        return PPO(
            "MlpPolicy", make_vec_env(name, task["num_envs"]), n_steps=task["length"], n_epochs=task["epochs"],
            batch_size=steps // task["minibatches"], ent_coef=task["entropy"], learning_rate=task["learning_rate"],
            policy_kwargs=policy, seed=0,
        ), steps  # fmt: skip
    trained = {"sac": SAC, "tqc": TQC}[task["algorithm"]](
        "MlpPolicy", name, buffer_size=task["capacity"], learning_starts=0 if task["full"] else task["warmup"],
        batch_size=256, gradient_steps=task["updates"], policy_kwargs=policy, seed=0,
    )  # fmt: skip
    if task["full"]:
        fill(trained.replay_buffer)
    return trained, 1


def fill(buffer):
    """A full buffer of noise."""
    import numpy as np

    random = np.random.default_rng(0)
    for name in ("observations", "next_observations", "actions", "rewards"):
        array = getattr(buffer, name)
        array[:] = random.standard_normal(array.shape, np.float32).clip(-1, 1)
    buffer.full = True


def train(suite):
    warnings.filterwarnings("ignore")
    task = suite.task
    trained, steps = model(task)
    if "warmup" in task:
        trained.learn(2 if task["full"] else task["warmup"] + 10)

    def advance(n):
        trained.learn(n * steps, reset_num_timesteps=False)

    suite.chunks(advance, task["units"], *PACKAGES)


def imported(suite):
    from sbx import PPO  # noqa: F401

    suite.phase("imported")
    suite.finish(*PACKAGES)


if __name__ == "__main__":
    main({"train": train, "import": imported})
