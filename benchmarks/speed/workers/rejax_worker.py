"""rejax 0.1.3 as the suite's peer: its own iterations of training, with gymnax 0.0.9; `benchmarks/peers/setup rejax`.

Seeds are vmapped, as its documentation does. One seed is not: under `vmap` the `cond` around rejax's updates would
compute both branches, and copy the replay.
"""

from protocol import main

PACKAGES = ("rejax", "gymnax", "brax", "jax", "jaxlib", "flax", "optax")


def algorithm(task):
    from rejax import PPO, SAC

    suite, _, name = task["env"].partition("/")
    common = {
        "env": name if suite == "gymnax" else task["env"],
        "env_params": {} if suite == "gymnax" else {"backend": "spring"},
        "learning_rate": task["learning_rate"],
        "normalize_observations": task["normalise"],
    }
    if task["algorithm"] == "ppo":
        return PPO.create(
            num_envs=task["num_envs"], num_steps=task["length"], num_epochs=task["epochs"], max_grad_norm=0.5,
            num_minibatches=task["minibatches"], ent_coef=task["entropy"], **common,
            agent_kwargs={"hidden_layer_sizes": task["hidden"], "activation": "tanh"},
        )  # fmt: skip
    return SAC.create(
        num_envs=1, num_epochs=task["updates"], buffer_size=task["capacity"], batch_size=256, **common,
        fill_buffer=0 if task["full"] else task["warmup"], hidden_layer_sizes=task["hidden"],
    )  # fmt: skip


def programs(task, algorithm):
    """`init(keys)` and `chunk(state, n)`, compiled, over seeds if there are several."""
    import jax

    def init(key):
        state = algorithm.init_state(key)
        if not task.get("full"):
            return state
        data = state.replay_buffer.data
        noise = {
            name: jax.random.normal(key, leaf.shape) for name, leaf in data._asdict().items() if leaf.dtype != bool
        }
        data = data._replace(**noise)
        return state.replace(replay_buffer=state.replay_buffer.replace(data=data, full=jax.numpy.array(True)))

    def chunk(state, n):
        return jax.lax.fori_loop(0, n, lambda _, state: algorithm.train_iteration(state), state)

    if task["seeds"] > 1:
        init, chunk = jax.vmap(init), jax.vmap(chunk, (0, None))
    return jax.jit(init), jax.jit(chunk, donate_argnums=0)


def train(suite):
    import jax

    task = suite.task
    init, chunk = programs(task, algorithm(task))
    key = jax.random.key(0)
    state = init(key if task["seeds"] == 1 else jax.random.split(key, task["seeds"]))

    def advance(n):
        nonlocal state
        state = jax.block_until_ready(chunk(state, n))

    if "warmup" in task:
        advance(2 if task["full"] else task["warmup"] + 2)
    suite.chunks(advance, task["units"], *PACKAGES)


def imported(suite):
    from rejax import PPO  # noqa: F401

    suite.phase("imported")
    suite.finish(*PACKAGES)


def reset(suite):
    import jax
    from rejax.compat import create

    suite.phase("imported")
    kind, _, name = suite.task["env"].partition("/")
    env, params = create(name) if kind == "gymnax" else create(suite.task["env"], backend="spring")
    suite.phase("constructed")
    jax.block_until_ready(jax.jit(env.reset)(jax.random.key(0), params))
    suite.phase("reset")
    suite.finish(*PACKAGES)


def start(suite):
    """To the first update; and, if the task has a return at which it is solved, on to there."""
    import jax
    from rejax import PPO  # noqa: F401
    from rejax.evaluate import evaluate

    suite.phase("imported")
    task = suite.task
    trained = algorithm(task)
    suite.phase("constructed")
    init, chunk = programs(task, trained)
    key, evaluate_key = jax.random.split(jax.random.key(task["seed"]))
    state = jax.block_until_ready(chunk(init(key), 1))
    suite.phase("first update")
    updates, params = 1, trained.env_params

    @jax.jit
    def mean_return(state, key):
        limit = params.max_steps_in_episode
        return evaluate(trained.make_act(state), key, trained.env, params, task["episodes"], limit)[1].mean()

    while "solved" in task and "solved" not in suite.phases and updates * task["units"] < task["steps"]:
        state = chunk(state, task["every"])
        updates += task["every"]
        if mean_return(state, evaluate_key) >= task["solved"]:
            suite.phase("solved")
    suite.finish(*PACKAGES, steps=updates * task["units"])


if __name__ == "__main__":
    main({"train": train, "import": imported, "reset": reset, "start": start})
