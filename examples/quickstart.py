"""Batch normalisation with numbabn: forward, backward, inference and state."""

import console
import numpy as np

import numbabn as nbn

console.set_up()  # prints what numbabn compiles at the first run; not needed in your own code

rng = np.random.default_rng(0)
x = rng.normal(loc=3, scale=2, size=(32, 64, 14, 14)).astype(np.float32)  # (N, C, H, W)
dy = rng.standard_normal(x.shape, dtype=np.float32)  # the gradient that comes back from the loss

bn = nbn.BatchNorm(64)  # one mean and one variance per channel, over N, H and W

y = bn(x)  # in training mode the layer normalises with the statistics of this batch
print(f"x: mean {x.mean():.3f}, standard deviation {x.std():.3f}")
print(f"y: mean {abs(y.mean()):.3f}, standard deviation {y.std():.3f}")

dx = bn.backward(dy)  # also fills bn.grads, which an optimiser takes to update bn.params in place
for name, p in bn.params.items():
    p -= 0.01 * bn.grads[name]
print(f"dx: shape {dx.shape}; gradients: {', '.join(bn.grads)}")

bn.eval()  # the running statistics now normalise every sample, whatever else is in its batch
same = np.array_equal(bn(x)[:1], bn(x[:1]))
print(f"in evaluation mode the first sample alone gives the same as in its batch: {same}")

state = bn.state_dict()  # a dictionary of plain arrays, which np.savez can store
clone = nbn.BatchNorm(64)
clone.load_state_dict(state)
clone.eval()
print(f"state: {', '.join(state)}")
print(f"a copy restored from it gives the same output: {np.array_equal(clone(x), bn(x))}")
