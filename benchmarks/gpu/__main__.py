from benchmarks.gpu.script import main

if __name__ == "__main__":
    main()
