"""segprior: land-cover and building masks from aerial GeoTIFFs with diffusion priors over image and labels."""

__version__ = "0.1.0"
