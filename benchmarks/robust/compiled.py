"""Robust policy iteration in scalar code, compiled by numba: what `jaxrl.robust.solve` is measured against.

The same algorithm: Newton's step on the actions and the laws together, taken if the residual falls as value iteration's
does. Rows are lists of successors; each is sorted (L1, Interval) or solved by Newton's method from the last solution
(KL), or by active sets (chi-square).
"""

import math

import numba
import numpy as np

L1, INTERVAL, KL, CHI_SQUARE = range(4)


@numba.njit(cache=True)
def worst(kind, radius, p, z, law, warm):
    """The worst law of a row, written to `law`, and its value; `warm` is log theta of the last time, for KL."""
    n = len(p)
    if kind == L1:
        order = np.argsort(z)
        law[:] = p
        moved = min(radius / 2, 1 - p[order[0]])
        law[order[0]] += moved
        for k in range(n - 1, 0, -1):
            taken = min(moved, law[order[k]])
            law[order[k]] -= taken
            moved -= taken
            if moved <= 0:
                break
    elif kind == INTERVAL:
        order = np.argsort(z)
        law[:] = (1 - radius) * p
        left = radius
        for k in order:
            added = min(2 * radius * p[k], left)
            law[k] += added
            left -= added
            if left <= 0:
                break
    elif kind == KL:
        tilt(radius, p, z, law, warm)
    else:
        project(radius, p, z, law)
    value = 0.0
    for k in range(n):
        value += law[k] * z[k]
    return value


@numba.njit(cache=True, fastmath=True)
def tilt(radius, p, z, law, warm):
    low, high = z.min(), z.max()
    size = max(high - low, 1e-300)
    x = warm[0]
    left, right = -30.0, 30.0
    for _ in range(60):
        theta = math.exp(x)
        mass, first, second = 0.0, 0.0, 0.0
        for k in range(len(p)):
            y = (z[k] - low) / size
            w = p[k] * math.exp(-theta * y)
            law[k] = w
            mass += w
            first += w * y
            second += w * y * y
        mean = first / mass
        height = -theta * mean - math.log(mass)
        if abs(height - radius) < 1e-13:
            break
        if height > radius:
            right = x
        else:
            left = x
        following = x - max(height, 1e-300) * math.log(max(height, 1e-300) / radius) / (
            theta * theta * (second / mass - mean * mean)
        )
        if not left <= following <= right:
            following = (left + right) / 2
        if abs(following - x) < 1e-11:
            break
        x = following
    warm[0] = x
    for k in range(len(p)):
        law[k] /= mass


@numba.njit(cache=True)
def project(radius, p, z, law):
    n = len(p)
    active = np.ones(n, numba.boolean)
    while True:
        held, first = 0.0, 0.0
        for k in range(n):
            if active[k]:
                held += p[k]
                first += p[k] * z[k]
        mean, variance = first / held, 0.0
        for k in range(n):
            if active[k]:
                variance += p[k] * (z[k] - mean) ** 2
        reach = math.sqrt(variance / held / ((1 + radius) * held - 1))
        shrunk = False
        for k in range(n):
            law[k] = p[k] * (1 - (z[k] - mean) / reach) / held if active[k] else 0.0
            if law[k] < 0:
                active[k] = False
                shrunk = True
        if not shrunk:
            return


@numba.njit(cache=True)
def sweep(kind, radius, successors, probs, reward, discount, v, q, laws, warm):
    states, actions, slots = probs.shape
    z = np.empty(slots)
    for s in range(states):
        for a in range(actions):
            for k in range(slots):
                z[k] = reward[s, a, k] + discount * v[successors[s, a, k]]
            q[s, a] = worst(kind, radius, probs[s, a], z, laws[s, a], warm[s, a])


@numba.njit(cache=True)
def solve(kind, radius, successors, probs, reward, discount, tolerance):
    """The robust value, q, sweeps and rejections; stops at a residual of `tolerance`."""
    states, actions, slots = probs.shape
    v, w, back = np.zeros(states), np.zeros(states), np.zeros(states)
    q, laws, warm = np.empty((states, actions)), np.empty(probs.shape), np.zeros((states, actions, 1))
    limit, sweeps, rejections = np.inf, 0, 0
    while True:
        sweep(kind, radius, successors, probs, reward, discount, v, q, laws, warm)
        sweeps += 1
        residual = 0.0
        for s in range(states):
            w[s] = q[s].max()
            residual = max(residual, abs(w[s] - v[s]))
        if residual > limit:
            rejections += 1
            limit = np.inf
            v[:] = back
            continue
        if residual <= tolerance:
            return w, q, sweeps, rejections
        limit = discount * residual
        back[:] = w
        matrix, b = np.eye(states), w - v
        for s in range(states):
            a = q[s].argmax()
            for k in range(slots):
                matrix[s, successors[s, a, k]] -= discount * laws[s, a, k]
        v += np.linalg.solve(matrix, b)


@numba.njit(parallel=True, cache=True)
def solve_many(kind, radius, successors, probs, reward, discount, tolerance):
    """The robust values of many models, on all cores."""
    values = np.empty(probs.shape[:2])
    for i in numba.prange(len(probs)):
        values[i] = solve(kind, radius, successors[i], probs[i], reward[i], discount, tolerance)[0]
    return values
