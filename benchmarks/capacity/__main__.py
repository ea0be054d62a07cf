from benchmarks.capacity.script import main

if __name__ == "__main__":
    main()
