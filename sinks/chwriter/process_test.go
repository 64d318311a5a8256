package chwriter

func writerProcess([]string) int { return 0 }
