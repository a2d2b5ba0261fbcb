"""Several hosts on one machine: network namespaces, each with an address and a Ray of its own."""
