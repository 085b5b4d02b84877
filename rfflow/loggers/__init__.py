"""Fabric loggers that conf/loggers chooses."""
