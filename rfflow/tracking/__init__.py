"""What people look at: Fabric loggers and callbacks."""
