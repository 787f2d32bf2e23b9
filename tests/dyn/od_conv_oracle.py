"""ODConv in numpy, with nothing shared with the library."""

import numpy as np
import numpy_oracle


def attention_by_numpy(variables, context, kernel_size, norm="batch", statistics=None):
    """Returns the weights (channel, filter, spatial, kernel) of section 3.2, None without a head."""
    params = variables["params"]["attention"]
    t = float(variables["attention"]["attention"]["temperature"])
    z = np.asarray(context) @ np.asarray(params["squeeze"]["kernel"])
    if norm != "none":
        if norm == "layer":
            mean, var = z.mean(1, keepdims=True), z.var(1, keepdims=True)
        elif statistics == "batch":
            mean, var = z.mean(0), z.var(0)
        else:
            running = variables["batch_stats"]["attention"]["norm"]
            mean, var = np.asarray(running["mean"]), np.asarray(running["var"])
        z = (z - mean) / np.sqrt(var + 1e-5)
        z = z * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    z = np.maximum(z, 0)

    def logits(name):
        return (z @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])) / t

    def sigmoid(name):
        return 1 / (1 + np.exp(-logits(name))) if name in params else None

    spatial, kernel = sigmoid("spatial"), None
    if spatial is not None:
        spatial = spatial.reshape(-1, *kernel_size)
    if "kernel" in params:
        kernel = np.exp(logits("kernel"))
        kernel = kernel / kernel.sum(1, keepdims=True)
    return sigmoid("channel"), sigmoid("filter"), spatial, kernel


def od_conv_by_definition(variables, x, weights, **geometry):
    """Computes ODConv from its attention's weights."""
    channel, filters, spatial, mix = weights
    params = variables["params"]
    everywhere = (slice(None), *(None,) * (x.ndim - 2))
    x = np.asarray(x) * channel[everywhere]
    y = numpy_oracle.convolve(x, params["kernel"], mix, spatial, **geometry)
    y = y if filters is None else y * filters[everywhere]
    return y + np.asarray(params["bias"])
