"""The script that `longspan-sweep` starts for each job, alone in its folder, which Python looks in for modules first."""
