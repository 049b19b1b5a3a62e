// The build with Google's Android plugin: an AAR and the sample app. Run `./native.sh` first: it builds libdollop.so for devices.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode.set(RepositoriesMode.FAIL_ON_PROJECT_REPOS)
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "dollop"
include(":core", ":library", ":sample")
