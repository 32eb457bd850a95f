"""mpkit against its peers: ratios, taken in one run on one machine."""
