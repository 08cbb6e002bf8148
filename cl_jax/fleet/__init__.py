"""An experiment trained in shards by many processes, on one machine or many, and gathered into the same one table.

    cl-jax shards    sweep.json: what each shard trains, fixed before anything starts
    cl-jax worker    trains one shard; whatever starts it may start it again, elsewhere, or twice
    cl-jax status    where all of them stand
    cl-jax gather    the table that `cl-jax run` would have written

What starts workers knows one rule: run the worker of each shard again until it exits 0, unless it exits 2.
"""
