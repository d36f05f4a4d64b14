"""Who does the shards: this process, or actors that Ray Data schedules."""
