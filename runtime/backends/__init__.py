"""Ways to run one component; the only part of the runtime that imports a framework."""
