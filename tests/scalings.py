"""Every scaling of RoPE, for tiny models: heads of 8 dimensions whose rotated pairs all turn within a few tokens."""

ORIGINAL = 6  # tokens that need no scaling

LINEAR = {"theta": 100.0, "scaling": {"name": "linear", "factor": 4.0}}
DYNAMIC = {"theta": 100.0, "scaling": {"name": "dynamic", "factor": 3.0, "original_length": ORIGINAL}}
LLAMA3 = {
    "theta": 100.0,
    "scaling": {
        "name": "llama3",
        "factor": 8.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 1.25,
        "original_length": ORIGINAL,
    },
}
YARN = {
    "theta": 100.0,
    "scaling": {"name": "yarn", "factor": 4.0, "original_length": ORIGINAL, "beta_fast": 1.2, "beta_slow": 0.2},
}
YARN_UNROUNDED = YARN | {"scaling": YARN["scaling"] | {"truncate": False, "mscale": 1.5, "mscale_all_dim": 0.5}}
LONGROPE = {
    "theta": 100.0,
    "scaling": {
        "name": "longrope",
        "short_factors": (1.0, 1.1, 1.3, 1.6),
        "long_factors": (1.2, 2.0, 4.0, 8.0),
        "original_length": ORIGINAL,
        "factor": 8.0,
    },
}

SCALINGS = {
    "linear": LINEAR,
    "dynamic": DYNAMIC,
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn unrounded": YARN_UNROUNDED,
    "longrope": LONGROPE,
}
