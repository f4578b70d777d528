"""Past one machine, on Ray: replicas of the server, and batches on a cluster. Needs the extra `[ray]`."""
