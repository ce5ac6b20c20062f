"""Log-probabilities of one decoding step: logits and the token that was emitted -> what is recorded of the token.

They are those of the model itself, before temperature and filters, over the ids that the tokenizer has.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s1jax.decode.ends import Ends
from s1jax.decode.sampling import NEVER

NUM_LIKELIEST = 20
"""Tokens whose mean log-probability is recorded. DeepConf takes as many (arXiv 2508.15260)."""
_BLOCK = 64


def of_step(
    logits: Float[Array, "B V"], exists: Bool[Array, " V"], ends: Ends, match: Int[Array, " B"], token: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Return log-probabilities: of `token`, of drawing any id that completes an end of thinking, and the mean of the likeliest ids.

    `match` is the state of `ends` before the token. There are 20 likeliest ids, or as many as exist.
    """
    logits = jnp.where(exists, logits, NEVER)
    total = jax.nn.logsumexp(logits, axis=-1)
    of_token = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    ids = ends.completing[match]
    completing = jnp.where(ids >= 0, jnp.take_along_axis(logits, jnp.maximum(ids, 0), axis=1), NEVER)
    of_end = jax.nn.logsumexp(completing, axis=-1)
    largest = largest_values(logits, min(NUM_LIKELIEST, logits.shape[1]))
    num_likeliest = jnp.minimum(jnp.sum(exists), largest.shape[1])
    counted = jnp.arange(largest.shape[1]) < num_likeliest
    mean = jnp.sum(jnp.where(counted, largest, 0), axis=-1) / num_likeliest
    return of_token - total, of_end - total, mean - total


def largest_values(x: Float[Array, "B V"], k: int) -> Float[Array, "B k"]:
    """Return the k largest values of each row, in descending order.

    The k largest values of a row lie in the k blocks whose maxima are largest, except for equal values. So only the maxima and these
    blocks are sorted, which is several times as fast as sorting the row.
    """
    B, V = x.shape
    num_blocks = -(-V // _BLOCK)
    if num_blocks > k:
        padded = jnp.pad(x, ((0, 0), (0, num_blocks * _BLOCK - V)), constant_values=-jnp.inf)
        blocks = padded.reshape(B, num_blocks, _BLOCK)
        _, best = jax.lax.top_k(blocks.max(axis=2), k)
        x = jnp.take_along_axis(blocks, best[:, :, None], axis=1).reshape(B, k * _BLOCK)
    return jax.lax.top_k(x, k)[0]
