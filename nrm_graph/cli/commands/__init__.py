"""What the commands do, each beside its options: it calls the library and prints."""
