from setuptools import find_namespace_packages, setup

# The kernels stand in a folder of their own, beside the package, and are installed as nprcnn.kernels.
# "Namespace" packages are folders without __init__.py, which some of these are.
NO_CODE = ["*__pycache__*"]
PACKAGES = find_namespace_packages(include=["nprcnn", "nprcnn.*"], exclude=NO_CODE)
KERNELS = ["nprcnn.kernels"] + ["nprcnn.kernels." + name for name in find_namespace_packages("kernels", exclude=NO_CODE)]
NOTEBOOKS = ["jupyterlab", "ipywidgets", "nbclient", "jupytext"]

setup(
    name="nprcnn",
    version="0.1.0",
    description="A Mask R-CNN written from scratch in NumPy, for people who want to understand one",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=PACKAGES + KERNELS,
    package_dir={"nprcnn.kernels": "kernels"},
    package_data={"": ["*.md", "*.cu", "*.cuh", "*.h", "*.cpp", "*.html", "*.css", "*.js"], "nprcnn.weights": ["*.safetensors", "*.json"]},
    install_requires=["numpy>=2.0", "numba>=0.60", "threadpoolctl>=3.1", "pillow>=10.1", "matplotlib>=3.8", "tqdm>=4.60",
                      "safetensors>=0.4", "pycocotools>=2.0.8"],
    extras_require={
        "notebooks": NOTEBOOKS,
        "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.80"],
        "mpi": ["mpi4py>=4.0", "mpich>=4.1"],
        # not plain cupy, which is built from its source
        "cuda12": ["cupy-cuda12x[ctk]", "numba-cuda[cu12]"],
        "cuda13": ["cupy-cuda13x[ctk]", "numba-cuda[cu13]"],
    },
    entry_points={"console_scripts": ["nprcnn = nprcnn.cli:main"]},
)
