"""How clients reach a service: in this process, or over HTTP. `contract` is the seam; clients know nothing else."""
