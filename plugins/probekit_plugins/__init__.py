"""The analyses that come with probekit, each named after what it does. They use only what `probekit` exports."""
