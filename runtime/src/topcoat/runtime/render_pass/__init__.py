"""A network as the last pass of a renderer: :class:`Pass`."""
