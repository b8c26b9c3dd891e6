"""From a queued job to its images: queue, worker, batch and, on a cluster, the dispatcher."""
