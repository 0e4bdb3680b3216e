"""Run batch normalisation forward and backward on CuPy arrays, which stay on the GPU."""

import console

console.set_up()

try:
    import cupy

    import numbabn as nbn

    bn = nbn.BatchNorm(64, device="cuda")  # parameters and running statistics are CuPy arrays
except (ImportError, RuntimeError) as error:
    raise SystemExit(
        f"This example cannot run: {error}\n"
        'It needs an NVIDIA GPU and: python -m pip install "numbabn[cuda]" cupy-cuda13x'
    ) from None

x = cupy.random.standard_normal((32, 64, 56, 56), dtype=cupy.float32) * 2 + 3  # (N, C, H, W)
dy = cupy.random.standard_normal(x.shape, dtype=cupy.float32)  # the gradient that comes back from the loss

y = bn(x)  # the layer is in training mode and uses CuPy's current stream
dx = bn.backward(dy)  # also fills bn.grads
for name, p in bn.params.items():
    p -= 0.01 * bn.grads[name]

print(
    f"y: {type(y).__module__}.{type(y).__name__}, mean {float(abs(y.mean())):.3f}, std {float(y.std()):.3f}"
)
print(f"dx: shape {dx.shape}; running_mean is near 0.3: {float(bn.running_mean.mean()):.2f}")
