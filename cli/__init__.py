"""The `dno` command's rooms: what it takes (`options`, `solvers`), one search (`search`), and one file a command."""
