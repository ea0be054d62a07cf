from benchmarks.soak.script import main

if __name__ == "__main__":
    main()
