"""How a student learns from a teacher: features, pooling, the distiller, cached teacher outputs."""
