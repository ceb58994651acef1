"""The floors: parts of our training alone, below whose time no loop can go that does the one after the other."""

from ours import PACKAGES, configured, devices, keys


def floor(suite, part):
    """Time `part(task) -> (step, state)`, a part of training alone: `step(state, key) -> state`, for one seed."""
    import jax

    from jaxrl import train

    task = suite.task
    devices(task)
    step, init = part(task)
    shared = train.devices_for(task["seeds"])

    def chunk(state, key, n):
        return jax.lax.fori_loop(0, n, lambda i, state: step(state, jax.random.fold_in(key, i)), state)

    def over_seeds(function, axes):
        function = jax.vmap(function, axes)
        if len(shared) > 1:
            sharding, everywhere = train.sharing(shared), jax.sharding.PartitionSpec()
            specs = tuple(sharding.spec if axis == 0 else everywhere for axis in axes)
            function = jax.shard_map(
                function, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False
            )
        return function

    state = jax.jit(over_seeds(init, (0,)))(keys(task))
    program = jax.jit(over_seeds(chunk, (0, 0, None)), donate_argnums=0)
    step_keys = keys(task | {"seed": 1})

    def advance(n):
        nonlocal state
        state = jax.block_until_ready(program(state, step_keys, n))

    suite.chunks(advance, task["units"], *PACKAGES)


def environment(task):
    """The environment alone, as the loop steps it, with an action that is always the same; its state is kept."""
    import jax.numpy as jnp

    from jaxrl import envs, rollout

    env = envs.make(task["env"])
    num_envs, length = task.get("num_envs", 1), task.get("length", 1)

    def policy(observation, key):
        action = env.spec.action.zeros()
        return jnp.broadcast_to(action, (num_envs, *action.shape)), {}

    def init(key):
        return rollout.lanes(env, num_envs), jnp.zeros(3)

    def step(state, key):
        lanes, sums = state
        lanes, batch = rollout.collect(env, policy, lanes, key, length)
        ended = jnp.sum(batch.terminated | batch.truncated)
        return lanes, sums + jnp.stack([jnp.sum(batch.reward), jnp.sum(batch.next_observation), ended])

    return step, init


def gradients(task):
    """The gradient steps alone, on batches that never change: no environment, advantages, shuffling or replay."""
    from jaxrl import envs

    agent, config = configured(task)
    spec = envs.make(task["env"]).spec
    part = minibatches if task["algorithm"] == "ppo" else updates
    return part(task, agent, config, spec)


def minibatches(task, ppo, config, spec):
    """PPO's: one pass over all minibatches of all epochs."""
    import jax
    import jax.numpy as jnp
    import optax

    count, size = task["epochs"] * task["minibatches"], task["num_envs"] * task["length"] // task["minibatches"]
    batch = ppo.Samples(
        observation=jax.random.normal(jax.random.key(0), (count, size, *spec.observation.shape)),
        action=jax.vmap(jax.vmap(spec.action.sample))(jax.random.split(jax.random.key(1), (count, size))),
        **{name: jnp.zeros((count, size)) for name in ("log_prob", "value")},
        **{name: jax.random.normal(jax.random.key(2), (count, size)) for name in ("advantage", "target")},
    )
    adam = ppo.optimiser(config, 0)

    def minibatch(carry, batch):
        gradients, _ = jax.grad(ppo.loss, has_aux=True)(carry[0], config, spec, batch)
        direction, opt_state = adam.update(gradients, carry[1])
        return (optax.apply_updates(carry[0], direction), opt_state), None

    def init(key):
        params = ppo.network(config, spec).init(key, spec.observation.zeros())
        return params, adam.init(params)

    return lambda state, key: jax.lax.scan(minibatch, state, batch)[0], init


def updates(task, agent, config, spec):
    """The updates of an off-policy agent that follow one step."""
    import jax
    import jax.numpy as jnp

    from jaxrl.types import Transition

    size = (1, config.data.batch_size)
    never = jnp.zeros(size, bool)
    batch = Transition(
        observation=jax.random.normal(jax.random.key(0), (*size, *spec.observation.shape)),
        action=jax.vmap(jax.vmap(spec.action.sample))(jax.random.split(jax.random.key(1), size)),
        reward=jax.random.normal(jax.random.key(2), size),
        next_observation=jax.random.normal(jax.random.key(3), (*size, *spec.observation.shape)),
        terminated=never,
        truncated=never,
    )

    def step(state, key):
        many = jax.random.split(key, task["updates"])
        return jax.lax.scan(lambda state, key: (agent.update(config, state, batch, key)[0], None), state, many)[0]

    return step, lambda key: agent.init(config, spec, key)
