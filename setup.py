from setuptools import setup

NOTEBOOKS = ["jupyterlab", "ipywidgets", "nbclient", "jupytext"]

setup(
    name="nprcnn",
    version="0.1.0",
    description="A Mask R-CNN written from scratch in NumPy, for people who want to understand one",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=["nprcnn", "nprcnn.ops", "nprcnn.models", "nprcnn.data", "nprcnn.train", "nprcnn.weights"],
    package_data={"nprcnn.weights": ["*.safetensors", "*.json"]},
    install_requires=["numpy>=2.0", "pillow>=10.1", "matplotlib>=3.8", "tqdm>=4.60", "safetensors>=0.4",
                      "pycocotools>=2.0.8"],
    extras_require={
        "notebooks": NOTEBOOKS,
        "test": ["pytest>=8", "hypothesis>=6.80"],
    },
    entry_points={"console_scripts": ["nprcnn = nprcnn.cli:main"]},
)
