"""Run the loop on Ray: groups of workers, sweeps, schedulers and searches. Nothing else imports ray."""
