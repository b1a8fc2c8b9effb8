"""What tests share and is no test: networks, stores by hand, programs of other processes."""
