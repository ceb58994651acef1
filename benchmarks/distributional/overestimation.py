"""Do critics overestimate? What they say of the actions their own actor takes, less what these earn.

    python benchmarks/distributional/overestimation.py

On the risky point mass, whose penalties are random. Along whole episodes of the policy as it is, at each of eight
points of training: the estimate of the critic at every state and action, less the discounted return that follows
(with the entropy of later actions at the temperature of the moment, where the critic is soft; the return is summed over
400 steps, past the time limit, which the critic does not see). The estimate is what the actor climbs: the smallest of
SAC's critics, TD3's first, the mean of TQC's quantiles; STAC's is mu, before pessimism. TD3 acts without noise, the
others sample, STAC under dropout. All soft agents begin with the same temperature. Writes overestimation.json, after
each agent, and overestimation.png; what is in the file of the same command is not run again.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import lanes  # sets the number of devices
import numpy as np

from jaxrl import envs, log, normalise, plot, policies, stats
from jaxrl.agents import sac, stac, td3, tqc
from jaxrl.types import Replay

HERE = Path(__file__).parent
POINTS, EPISODES, HORIZON, COUNTED = 8, 128, 400, 40
COMMON = {
    "learning_rate": 1e-3,
    "hidden_sizes": (64, 64),
    "data": Replay(num_envs=1, capacity=10_000, warmup=1_000, batch_size=256),
}


def of_sac(config, state, observation, key):
    """Action in [-1, 1]^A, its log-probability, and the estimate of its value."""
    action, log_prob = sac.actor(config, state.spec, state.params, observation).sample_and_log_prob(seed=key)
    values = sac.values(config, sac.critics(config, state.params["critics"], observation, action))
    return action, log_prob, jnp.min(values, axis=0)


def of_td3(config, state, observation, key):
    action = td3.actor(config, state.spec, state.params, observation)
    values = sac.values(config, sac.critics(config, state.params["critics"], observation, action))
    return action, jnp.zeros(action.shape[:-1]), values[0]


def of_tqc(config, state, observation, key):
    action, log_prob = sac.actor(config, state.spec, state.params, observation).sample_and_log_prob(seed=key)
    return action, log_prob, jnp.mean(tqc.critics(config, state.params["critics"], observation, action), axis=(0, -1))


def of_stac(config, state, observation, key):
    actor_key, key, critic_key = jax.random.split(key, 3)
    policy = stac.actor(config, state.spec, state.params, observation, actor_key)
    action, log_prob = policy.sample_and_log_prob(seed=key)
    return action, log_prob, stac.critic(config, state.params["critic"], observation, action, critic_key)[0]


SAC, STAC = sac.Config(initial_temperature=0.2, **COMMON), stac.Config(**COMMON)  # 0.2 is the default of STAC
AGENTS = {
    "SAC, 1 critic": (sac, SAC.replace(num_critics=1), of_sac),
    "SAC, 2 critics": (sac, SAC, of_sac),
    "STAC, pessimism 0": (stac, STAC.replace(pessimism=0.0), of_stac),
    "STAC, pessimism 0.25": (stac, STAC, of_stac),
    "TQC, 2 critics": (
        tqc,
        tqc.Config(initial_temperature=0.2, num_critics=2, critic_hidden_sizes=(64, 64), **COMMON),
        of_tqc,
    ),
    "TD3": (td3, td3.Config(**COMMON), of_td3),
}


def bias(env, judge, config, state, key):
    """Means over the first steps of episodes: estimate less return, the return, its entropy apart, and its size."""
    params = env.params()
    reset_key, key = jax.random.split(key)
    env_state, observation = jax.vmap(env.reset, (None, 0))(params, jax.random.split(reset_key, EPISODES))
    temperature = jnp.exp(state.params.get("log_temperature", -jnp.inf))

    def body(carry, key):
        env_state, observation, alive = carry
        judge_key, step_key = jax.random.split(key)
        action, log_prob, value = judge(config, state, normalise.apply(state.normaliser, observation), judge_key)
        env_state, step = jax.vmap(env.step, (None, 0, 0, 0))(
            params, env_state, policies.from_unit(action, env.spec.action), jax.random.split(step_key, EPISODES)
        )
        out = step.reward, step.terminated, temperature * log_prob, value, alive
        return (env_state, step.observation, alive & ~step.terminated), out

    start = env_state, observation, jnp.ones(EPISODES, bool)
    reward, terminated, cost, value, alive = jax.lax.scan(body, start, jax.random.split(key, HORIZON))[1]

    def back(carry, row):
        later, soft_later = carry  # the second with the entropy of the action there
        reward, terminated, cost = row
        discount = config.discount * (1 - terminated)
        soft = reward + discount * soft_later
        plain = reward + discount * later
        return (plain, soft - cost), (plain, soft)

    zero = jnp.zeros(EPISODES)
    plain, soft = jax.lax.scan(back, (zero, zero), (reward, terminated, cost), reverse=True)[1]
    counted = alive & (jnp.arange(HORIZON) < COUNTED)[:, None]

    def mean(x):
        return jnp.sum(jnp.where(counted, x, 0)) / jnp.sum(counted)

    episode = jnp.mean(jnp.sum(jnp.where(alive, reward, 0)[: env.max_steps], axis=0))
    return {
        "bias": mean(value - soft),
        "soft return": mean(soft),
        "entropy in it": mean(soft - plain),
        "episode": episode,
    }


def main(steps, seeds):
    env = envs.make("jaxrl/risky_point_mass")
    path = HERE / "overestimation.json"
    settings = {
        "command": f"python benchmarks/distributional/overestimation.py --steps {steps} --seeds {seeds}",
        "episodes": EPISODES,
        "versions": {"jax": jax.__version__},
        "steps": (np.arange(1, POINTS + 1) * (steps // POINTS)).tolist(),
        "agents": {},
    }
    record = json.loads(path.read_text()) if path.exists() else {}
    record = record if record.get("command") == settings["command"] else settings
    for name, (agent, config, judge) in AGENTS.items():
        if name not in record["agents"]:
            begin, measured = time.perf_counter(), functools.partial(bias, env, judge)
            found = lanes.run(agent, env, config, [0.0], lambda _: {}, seeds, steps, measured, POINTS)
            record["agents"][name] = {
                "config": log.describe(config),
                "seconds, compilation included": round(time.perf_counter() - begin, 1),
                "by seed": {what: values[0].round(3).tolist() for what, values in found.items()},
            }
            path.write_text(json.dumps(record) + "\n")
        table(name, record["agents"][name]["by seed"])
    learned = slice(POINTS // 2 - 1, None)  # before, estimates near 0 stand beside returns of about -90
    biases = {name: np.array(record["agents"][name]["by seed"]["bias"]) for name in AGENTS}
    series = {name: (record["steps"][learned], bias[:, learned]) for name, bias in biases.items()}
    plot.curves(
        HERE / "overestimation.png",
        series,
        xlabel="environment steps (per seed)",
        ylabel="estimate less return",
        title="Bias of the critic on the risky point mass",
        references={"none": 0.0},
        statistic=stats.mean,
    )


def table(name, by_seed):
    """Print means over the seeds halfway and at the end."""
    for point in (POINTS // 2 - 1, POINTS - 1):
        means = {what: float(np.mean(values, axis=0)[point]) for what, values in by_seed.items()}
        low, high = stats.bootstrap_interval(np.array(by_seed["bias"])[:, point], stats.mean)
        rest = ", ".join(f"{what} {value:.2f}" for what, value in means.items() if what != "bias")
        print(f"{name:22} part {point + 1}: bias {means['bias']:6.2f} [{low:.2f}, {high:.2f}], {rest}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4_000, help="per run")
    parser.add_argument("--seeds", type=int, default=4)
    main(**vars(parser.parse_args()))
