"""What one process leaves on disk for the next: verified blobs under the user's cache folder, bounded in size."""
