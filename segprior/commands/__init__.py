"""The commands: functions whose signatures are the options of the command line. torch is imported in them alone."""
