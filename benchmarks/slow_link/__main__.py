from benchmarks.slow_link.script import main

if __name__ == "__main__":
    main()
