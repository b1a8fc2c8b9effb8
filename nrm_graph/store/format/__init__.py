"""What is on disk: files, manifests, schemas, settings and metadata."""
