from benchmarks.picture_audit.script import main

if __name__ == "__main__":
    main()
