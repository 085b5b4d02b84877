"""Where workers stand: in this process, in others of this machine, on other machines."""
